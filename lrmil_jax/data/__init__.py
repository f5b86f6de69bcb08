"""From slides to shards and from shards to batches."""
