"""Train D2-Net: photographs to pairs to objectives to a checkpoint that `export` reads.

Imports the network and its detection from `export`; nothing here is needed to use a trained model.
"""
