"""Rankwright fine-tunes cross-encoder rerankers on your own data and proves whether it helped."""
