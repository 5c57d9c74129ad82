"""The commands of `python -m tnt`: train, finetune, eval, predict, visualize.

    options.py    what each command takes, from flags and YAML
    models.py     models by timm's names, their weights and class names
    data.py       datasets and the order of their samples
    transforms.py what happens to an image between file and model
    engine.py     one training step and one evaluation
    parallel.py   processes, DDP, FSDP2
    saving.py     checkpoints that survive a crash, exported weights
    logs.py       progress bar, CSV, TensorBoard

The rest is timm's (data, augmentation, optimisers, schedules, losses, EMA) and torch.distributed's.
Needs the `train` extra: pip install 'tnt-kernels[train]'.
"""
