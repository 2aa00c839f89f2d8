"""Files in, files out: `rerankd rank` and `rerankd run-batch`."""
