package remote

import (
	"errors"
	"strings"
	"testing"

	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/trainer"
)

// TestPublishForBroadcasts: ranks are told how weights go out, and the offer
// says where rank 0 takes requests; an answer that says nothing of it is refused.
func TestPublishForBroadcasts(t *testing.T) {
	k := newBus(t, "broadcasts")
	digest := strings.Repeat("ab", 32)
	answer := published{Digest: digest, URL: "http://127.0.0.1:7", Token: "t"}
	var asked []publishBody
	made, _ := set(t, k, Options{Ranks: 2, Weights: rollout.ByNCCL}, func(rank int, r request) reply {
		if r.name != "publish" {
			return reply{}
		}
		if rank > 0 {
			return reply{body: published{}}
		}
		var body publishBody
		must(t, bus.DecodeStrict(r.body, &body))
		asked = append(asked, body)
		return reply{body: answer}
	})
	must(t, made.Begin(t.Context(), trainer.Stage{Incarnation: 7, Model: "m"}))
	offer, err := made.Publish(t.Context(), rollout.Policy{Incarnation: 7, Version: 4})
	must(t, err)
	want := rollout.Policy{Incarnation: 7, Version: 4, Digest: digest}
	if offer.Policy != want || offer.Transport != rollout.ByNCCL || offer.Path != "" || *offer.NCCL != (rollout.NCCLOffer{URL: answer.URL, Token: "t"}) {
		t.Errorf("%+v with %+v", offer, offer.NCCL)
	}
	if len(asked) != 1 || asked[0] != (publishBody{Incarnation: 7, PolicyVersion: 4, Transport: "nccl"}) {
		t.Errorf("rank 0 was asked for %+v", asked)
	}
	for _, bad := range []published{{Digest: digest, URL: answer.URL}, {Digest: digest, Token: "t"}, {Digest: digest, Path: "/a/directory"}, {URL: answer.URL, Token: "t"}} {
		answer = bad
		if _, err := made.Publish(t.Context(), rollout.Policy{Incarnation: 7, Version: 5}); !errors.Is(err, ErrFrame) {
			t.Errorf("%+v: %v, want ErrFrame", bad, err)
		}
	}
	if _, err := New(t.Context(), Options{Conn: k.conn, Scope: bus.Scope{Run: k.run, Incarnation: 8}, Weights: "pigeon"}); err == nil || !strings.Contains(err.Error(), "pigeon") {
		t.Errorf("weights by pigeon: %v", err)
	}
}
