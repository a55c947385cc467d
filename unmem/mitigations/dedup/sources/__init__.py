"""A team's image and caption data, shard by shard, whatever the layout: folders, webdataset tars, parquet, Arrow."""

from unmem.mitigations.dedup.sources.layout import plan, read
from unmem.mitigations.dedup.sources.shard import Item, Shard

__all__ = ["Item", "Shard", "plan", "read"]
