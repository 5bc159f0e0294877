"""The table of results, docs/results.md: what its rows are, how they are made, and how the page is written."""
