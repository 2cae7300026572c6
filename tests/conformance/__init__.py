"""The five documents that the product was asked for, block by block, run as printed, in order, in one folder."""
