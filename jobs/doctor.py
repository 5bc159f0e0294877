r"""Check every node of a Ray cluster before a run.

    ray job submit --address http://127.0.0.1:8265 --working-dir . -- \
        python jobs/doctor.py --preset cifar10 --set data.path=s3://bucket/cifar10 --set storage=s3://bucket/runs

Status FAILED where something is to be fixed; the log says what. `digpro submit doctor ...` does the same, and checks
the arguments first.
"""

from pipeline.cli import main

if __name__ == "__main__":
    main("doctor")
