package configs

import (
	"slices"
	"strconv"

	"github.com/uadt-train/uadt-train/trainer"
)

// loraTargets are the projections that an adapter can be added to.
func loraTargets() []string {
	return []string{"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
}

// validateLoRA checks what adapters need of the rest of the recipe.
func (c Config) validateLoRA(found *check) {
	t := c.Trainer
	found.atLeast("trainer.lora_rank", t.LoRARank, 0)
	found.between("trainer.lora_alpha", t.LoRAAlpha, 0, 1e6)
	for _, target := range t.LoRATargets {
		found.oneOf("trainer.lora_targets", target, loraTargets()...)
	}
	if t.LoRARank == 0 {
		found.require(t.Weights != "lora", "trainer.weights", "lora, but trainer.lora_rank is 0: there is no adapter")
		return
	}
	found.require(t.Backend == "pytorch", "trainer.lora_rank", "%d, but %s trains no adapters, only pytorch does", t.LoRARank, t.Backend)
	found.require(len(t.LoRATargets) > 0, "trainer.lora_targets", "is empty: there is nothing to train")
	for i, s := range c.Stages {
		if slices.Contains(s.Frozen, trainer.Language) {
			found.require(false, "stages."+strconv.Itoa(i)+".frozen", "has language, which is what trainer.lora_rank trains")
		}
	}
	if t.Weights == "lora" {
		found.require(len(c.Rollout.Servers) > 0, "rollout.servers", "is empty, but trainer.weights is lora: the server that is started here takes no adapters")
		found.require(len(c.Stages) == 1 && c.Stages[0].Kind == trainer.RL, "trainer.weights", "lora, but the stages are not one of kind rl: adapters refer to what the servers were started on, model.path")
	}
}
