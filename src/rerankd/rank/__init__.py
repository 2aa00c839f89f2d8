"""`rerankd rank` and `rerankd run-batch`: from files of queries and documents to files of scores."""
