"""Features of whole collections of images, in hloc's HDF5 layout or Parquet (``d2feat extract``).

`names` (which images, and what they are called), `parts` (what is done survives a kill), `local` and
`ray_engine` (who does the work), `cli` (the command).
"""
