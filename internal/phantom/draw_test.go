package phantom

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/uadt-train/uadt-train/rollout"
)

// seeded is a random stream for tests.
func seeded(t *rapid.T) *rand.Rand {
	return rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
}

// Whatever the stream, a drawn scene is one that can be drawn and described.
func TestScenesAreSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, affected := seeded(t), rapid.IntRange(0, 4).Draw(t, "affected")
		s := drawScene(r, affected, Clinic)
		if s.Affected() != affected {
			t.Fatalf("%d quadrants affected, want %d", s.Affected(), affected)
		}
		if s.Contrast < 0.6 || s.Contrast > 1 {
			t.Errorf("contrast %v", s.Contrast)
		}
		total := s.Count(Clear)
		for _, l := range lesions {
			total += s.Count(l)
		}
		if total != 4 {
			t.Errorf("counts sum to %d", total)
		}
		for q, f := range s.Quadrants {
			if (f.Lesion == Clear) != (f.Marks == 0) || f.Lesion != Clear && (f.Size < 0.8 || f.Size > 1.3) {
				t.Errorf("%s: %+v", Quadrant(q), f)
			}
		}
		if s.Hard() != (affected >= 2) {
			t.Errorf("hard = %v with %d affected", s.Hard(), affected)
		}
	})
}

// Most agrees with a count by another route: sorting the quadrants' names.
func TestMostAndPresent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawScene(seeded(t), rapid.IntRange(0, 4).Draw(t, "affected"), Clinic)
		text := s.Scan([]int{0, 1, 2, 3})
		best, ties, present := 0, 0, 0
		name := ""
		for _, l := range lesions {
			n := strings.Count(text, l.String())
			if n > 0 {
				present++
			}
			switch {
			case n > best:
				best, ties, name = n, 1, l.String()
			case n == best:
				ties++
			}
		}
		most, ok := s.Most()
		if want := best > 0 && ties == 1; ok != want || ok && most.String() != name {
			t.Errorf("%s: most = %s, %v, want %s, %v", text, most, ok, name, want)
		}
		if len(s.Present()) != present {
			t.Errorf("%s: present %v, want %d kinds", text, s.Present(), present)
		}
	})
}

// A scan names every part once, in the order that is asked for.
func TestScanFollowsTheOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := seeded(t)
		s := drawScene(r, r.IntN(5), Clinic)
		order := r.Perm(scanParts)
		parts := strings.Split(s.Scan(order), ", ")
		for i, k := range order {
			want := "disc "
			if k != discPart {
				want = Quadrant(k).String() + " "
			}
			if !strings.HasPrefix(parts[i], want) {
				t.Errorf("order %v: part %d is %q, want %q", order, i, parts[i], want)
			}
		}
	})
}

func TestStreamsDifferByEverything(t *testing.T) {
	first := func(seed int64, split string, index int) uint64 { return stream(seed, split, index).Uint64() }
	base := first(1, "train", 2)
	if base != first(1, "train", 2) {
		t.Error("a stream does not repeat")
	}
	for name, other := range map[string]uint64{
		"seed": first(2, "train", 2), "split": first(1, "trai", 2), "index": first(1, "train", 3), "shifted": first(1, "train|", 2),
	} {
		if other == base {
			t.Errorf("another %s gives the same stream", name)
		}
	}
}

func TestDrawUntilGivesUp(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	tries := 0
	if _, ok := drawUntil(r, Clinic, uniform(r, 1, 4), func(Scene) bool { tries++; return false }); ok || tries < 1000 {
		t.Errorf("ok = %v after %d tries", ok, tries)
	}
	if err := errDraw("count"); !strings.Contains(err.Error(), "count") {
		t.Errorf("error %v", err)
	}
}

func TestKindsWithoutQuestions(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	if _, err := drawBasic(r, rollout.Caption, Clinic); err == nil || !strings.Contains(err.Error(), "caption") {
		t.Errorf("basic: %v", err)
	}
	if _, err := drawComplex(r, "essay", Clinic); err == nil || !strings.Contains(err.Error(), "essay") {
		t.Errorf("complex: %v", err)
	}
	_, err := Options{Kinds: []rollout.Kind{"essay"}}.Question(SplitTrain, 7)
	if err == nil || !strings.Contains(err.Error(), "item 7") {
		t.Errorf("question: %v", err)
	}
	if errors.Is(err, ErrOptions) {
		t.Error("a drawing error passes for bad options")
	}
}

// Items of any seed, split and index hold together: both traces end in the
// same conclusion, and only the long one looks.
func TestItemsHoldTogether(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := Options{Seed: rapid.Int64().Draw(t, "seed"), ComplexShare: rapid.Float64Range(0, 1).Draw(t, "complex")}
		split := rapid.SampledFrom([]string{SplitSFT, SplitTrain, SplitOutOfDomain}).Draw(t, "split")
		item, err := o.Question(split, rapid.IntRange(0, 5000).Draw(t, "index"))
		if err != nil {
			t.Fatal(err)
		}
		scan, conclusion, ok := strings.Cut(item.Long, ": ")
		if !ok || item.Short != glance+conclusion {
			t.Errorf("traces %q and %q", item.Short, item.Long)
		}
		if n := strings.Count(scan, "disc "); n != len(item.Scenes) {
			t.Errorf("%d discs in the scan of %d images", n, len(item.Scenes))
		}
		for _, s := range item.Scenes {
			if s.Camera != camera(split) {
				t.Errorf("split %s shows a picture of camera %d", split, s.Camera)
			}
		}
		if (item.Level == rollout.Complex) != (len(item.Scenes) > 1) {
			t.Errorf("%s with %d images", item.Level, len(item.Scenes))
		}
		if item.Kind != rollout.Open && !strings.Contains(item.Question, " A. ") {
			t.Errorf("no options in %q", item.Question)
		}
		if strings.Contains(item.Question, item.Answer) && item.Kind == rollout.Open {
			t.Errorf("the question %q holds its answer", item.Question)
		}
	})
}

// In-domain and training items are of the same kind; the open question's
// classes are balanced, so that none is a good guess.
func TestDiagnosesAreBalanced(t *testing.T) {
	o := Options{Seed: 12, Kinds: []rollout.Kind{rollout.Open}}
	count := map[string]int{}
	const n = 600
	for i := range n {
		item, err := o.Question(SplitInDomain, i)
		if err != nil {
			t.Fatal(err)
		}
		count[item.Answer]++
	}
	for _, d := range diagnoses {
		if share := float64(count[d]) / n; share < 0.10 || share > 0.24 {
			t.Errorf("%s is the answer to a share of %.2f, want about 1/6", d, share)
		}
	}
}
