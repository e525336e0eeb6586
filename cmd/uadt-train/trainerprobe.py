"""What an interpreter has for the trainer, as JSON: versions, devices, memory. Run by `uadt-train doctor`."""

import importlib
import importlib.metadata
import json
import sys

PACKAGES = json.loads(sys.argv[1])  # distribution: module
found = {"python": sys.version.split()[0], "versions": {}, "missing": {}, "devices": [], "backends": []}
for distribution, module in PACKAGES.items():
    try:
        importlib.import_module(module)
        if distribution:
            found["versions"][distribution] = importlib.metadata.version(distribution)
    except Exception as error:  # noqa: BLE001 - whatever keeps it from being imported
        found["missing"][module] = f"{type(error).__name__}: {error}"
if "torch" in sys.modules:
    import torch

    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        found["devices"].append({"name": torch.cuda.get_device_name(i), "free": free, "total": total})
    if torch.distributed.is_available():
        for name in ("gloo", "nccl"):
            if getattr(torch.distributed, f"is_{name}_available")():
                found["backends"].append(name)
json.dump(found, sys.stdout)
