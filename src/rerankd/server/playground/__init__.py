"""The playground: one page on which a person sees what the served reranker does."""
