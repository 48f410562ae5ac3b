"""Fine-tuning: your pairs in, a sentence-transformers folder out, on your own machine."""
