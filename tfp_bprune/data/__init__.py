"""From arrays or a name to splits: arrays, targets, what a network needs to know of them, augmentation."""
