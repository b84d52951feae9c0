"""The command `simmim` with FSDP2 on CPUs: `torchrun ... fsdp_on_cpu.py pretrain ...`.

accelerate has no FSDP for processes on CPUs, torch has. So accelerate gets the settings of fsdp2.yaml, and is made to
believe that its gloo processes are those of a device.
"""

import os
import sys

SETTINGS = {
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}

if __name__ == "__main__":
    os.environ.update(SETTINGS)

    import torch
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    from simmim_hf.cli import main

    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_XPU)
    torch.accelerator.is_available = lambda: True
    sys.exit(main(sys.argv[1:]))
