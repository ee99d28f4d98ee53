"""From folders of images to batches: folders.py finds and decodes, loading.py orders, augmentation.py augments."""
