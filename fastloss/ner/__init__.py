"""Trains a BERT two-pointer model for named entities with each loss and compares them."""
