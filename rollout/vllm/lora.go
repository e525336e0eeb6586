package vllm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/uadt-train/uadt-train/rollout"
)

// keptAdapters is how many adapters stay on a server: the live one and the one
// before it, which others that share the server may still ask.
const keptAdapters = 2

// adapterName is what servers call the adapter of policy. Nothing else is ever
// called so: a server that has the name has these weights.
func adapterName(policy rollout.Policy) string { return "uadt-" + policy.String() }

// addAdapter has s load the adapter of offer beside base, the model that it was
// started on, and returns the name to ask for. Nothing is paused: the weights of
// the base stay, and caches tell adapters apart. Whatever fails leaves s as it
// was.
func (s *server) addAdapter(ctx context.Context, base model, offer rollout.Offer) (name string, err error) {
	name = adapterName(offer.Policy)
	served, err := s.models(ctx)
	if err != nil {
		return "", err
	}
	if offer.Base != base.Root && len(s.adapters) == 0 {
		s.options.Log.Warn("a server was not started on the path that the trainer's adapters refer to: they must hold the same weights",
			"server", s.id, "server's", base.Root, "trainer's", offer.Base)
	}
	if !hasAdapter(served, name, base) {
		if err := s.loadAdapter(ctx, name, offer); err != nil {
			return "", err
		}
		if served, err = s.models(ctx); err != nil {
			return "", err
		}
		if !hasAdapter(served, name, base) {
			return "", &GarbageError{s.id, fmt.Errorf("adapter %s was loaded and is not served on %s", name, base.ID)}
		}
	}
	// A server that was restarted has none of those it had.
	s.adapters = slices.DeleteFunc(s.adapters, func(had string) bool { return had == name || !hasAdapter(served, had, base) })
	s.adapters = append(s.adapters, name)
	return name, nil
}

// hasAdapter says whether an adapter of base is served under name.
func hasAdapter(served []model, name string, base model) bool {
	return slices.ContainsFunc(served, func(m model) bool { return m.ID == name && m.Parent == base.ID })
}

// loadAdapter asks for an adapter to be loaded, and says what a server needs for that
// when it refuses.
func (c *client) loadAdapter(ctx context.Context, name string, offer rollout.Offer) error {
	body, err := json.Marshal(map[string]any{"lora_name": name, "lora_path": offer.Path})
	if err != nil {
		return err
	}
	_, err = c.post(ctx, "/v1/load_lora_adapter", body)
	var status *StatusError
	if errors.As(err, &status) {
		err = fmt.Errorf("%w (it must see the path, and have been started with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, --enable-lora, --max-lora-rank of at least trainer.lora_rank, and --model %s)", err, offer.Base)
	}
	return err
}

// dropAdapters unloads all but the last adapters. One that stays costs memory
// only, and the server itself puts out those that were not asked for longest: s
// is not kept from its jobs for it longer than a probe may take.
func (s *server) dropAdapters(ctx context.Context) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.options.ProbeTimeout, fmt.Errorf("no answer within %s", s.options.ProbeTimeout))
	defer cancel()
	for len(s.adapters) > keptAdapters {
		old := s.adapters[0]
		s.adapters = s.adapters[1:]
		body, err := json.Marshal(map[string]any{"lora_name": old})
		if err == nil {
			_, err = s.post(ctx, "/v1/unload_lora_adapter", body)
		}
		if err != nil {
			s.options.Log.Warn("an old adapter was not unloaded", "server", s.id, "adapter", old, "error", err)
		}
	}
}
