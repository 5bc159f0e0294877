"""DigPro as an estimator of scikit-learn, cell by cell; half a minute on two cores."""

# %% Images in an array: gray digits of 8 x 8 pixels, from 0 (black) to 1 (white)
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score

from pipeline import DigPro

digits = load_digits()
images = digits.images / 16

# %% Cluster them. Twelve epochs show how it works; the preset's eighty find better clusters
model = DigPro(n_clusters=10, settings={"optim.epochs": 12, "optim.warmup_epochs": 4}, verbose=True)
labels = model.fit_predict(images)

# %% The classes were not used; they only tell how good the clusters are
print(f"ARI of DigPro {adjusted_rand_score(digits.target, labels):.3f}")
pixels = KMeans(10, n_init=10, random_state=0).fit_predict(digits.data)
print(f"ARI of k-means on the pixels {adjusted_rand_score(digits.target, pixels):.3f}")

# %% Other images, their features, and how tight the clusters are
print(model.predict(images[:8]), model.transform(images[:8]).shape, f"{model.score(images):.3f}")
