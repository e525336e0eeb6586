package trainer

import "testing"

// A checkpoint of adapters may be offered as what it is: weights, or an adapter.
func TestSavedIs(t *testing.T) {
	weights, both := Saved{Digest: "w"}, Saved{Digest: "w", Adapter: "a"}
	for digest, want := range map[string][2]bool{"w": {true, true}, "a": {false, true}, "x": {false, false}, "": {false, false}} {
		if got := [2]bool{weights.Is(digest), both.Is(digest)}; got != want {
			t.Errorf("%q: %v, want %v", digest, got, want)
		}
	}
}
