"""Write configs/objective/NAME.yaml from the presets in ppo_kl/config/objective.py."""

import yaml

from ppo_kl.config.objective import PRESETS
from ppo_kl.load import SHIPPED, to_dict

for name, preset in PRESETS.items():
    text = yaml.safe_dump({"objective": to_dict(preset)}, sort_keys=False)
    (SHIPPED / "objective" / f"{name}.yaml").write_text(
        f"# Generated from ppo_kl/config/objective.py by `make configs`.\n{text}"
    )
