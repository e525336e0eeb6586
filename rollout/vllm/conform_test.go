package vllm

import (
	"testing"

	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/rollout/rollouttest"
)

// TestConformance runs the suite of rollout.Fleet over one and over three
// scripted servers.
func TestConformance(t *testing.T) {
	for name, servers := range map[string]int{"one server": 1, "three servers": 3} {
		t.Run(name, func(t *testing.T) {
			rollouttest.Run(t, func(t *testing.T) rollouttest.Setup {
				var fakes []*fake
				for range servers {
					fakes = append(fakes, newFake(t))
				}
				return rollouttest.Setup{
					Fleet: fleetOn(t, nil, fakes...),
					Offer: func(_ *testing.T, version int) rollout.Offer { return offerOf(version) },
				}
			})
		})
	}
}
