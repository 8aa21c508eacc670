"""From any text to batches: shards, packing, token files, the training stream, tasks."""

from nanochat.data.dataloader import Batch, BatchSource, ChatBatches, StreamBatches
from nanochat.data.dataset import DataOptions, Dataset, open_data

__all__ = [
    "Batch",
    "BatchSource",
    "ChatBatches",
    "DataOptions",
    "Dataset",
    "StreamBatches",
    "open_data",
]
