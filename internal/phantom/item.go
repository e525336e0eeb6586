package phantom

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/uadt-train/uadt-train/rollout"
)

// Item is one question with everything that is true about it.
type Item struct {
	ID       string // such as train-000012
	Scenes   []Scene
	Kind     rollout.Kind
	Level    rollout.Level
	Question string // options included
	Answer   string // a letter, letters joined by commas, or a name
	Short    string // a trace that guesses at a glance
	Long     string // a trace that scans quadrant by quadrant
	Hard     bool   // needs more than a look at one place
}

// numbers are the words for counts.
var numbers = [...]string{"no", "one", "two", "three", "four"}

const (
	lesionOptions = "A. microaneurysms B. haemorrhages C. exudates D. drusen"
	countOptions  = "A. one B. two C. three D. four"
	truthOptions  = "A. True B. False"
	glance        = "at a glance, "
)

// uniform draws the number of affected quadrants from lo to hi.
func uniform(r *rand.Rand, lo, hi int) func() int {
	return func() int { return lo + r.IntN(hi-lo+1) }
}

// drawBasic draws a question of the given kind about one image.
func drawBasic(r *rand.Rand, kind rollout.Kind, camera Camera) (Item, error) {
	var item Item
	var err error
	switch kind {
	case rollout.SingleChoice:
		if r.IntN(2) == 0 {
			item, err = drawCount(r, camera)
		} else {
			item, err = drawMost(r, camera)
		}
	case rollout.MultipleChoice:
		item, err = drawWhich(r, camera)
	case rollout.TrueFalse:
		item, err = drawMore(r, camera)
	case rollout.Open:
		item, err = drawDiagnosis(r, camera)
	default:
		return Item{}, fmt.Errorf("phantom: no basic question of kind %q", kind)
	}
	if err != nil {
		return Item{}, err
	}
	item.Kind, item.Level, item.Hard = kind, rollout.Basic, item.Scenes[0].Hard()
	return item, nil
}

// asked is a scene, the question about it, the conclusion in words, and
// the answer.
type asked struct {
	scene                        Scene
	question, conclusion, answer string
}

// item makes the traces; the scan goes in a random order.
func (a asked) item(r *rand.Rand) Item {
	return Item{
		Scenes: []Scene{a.scene}, Question: a.question, Answer: a.answer,
		Short: glance + a.conclusion, Long: a.scene.Scan(r.Perm(scanParts)) + ": " + a.conclusion,
	}
}

func drawCount(r *rand.Rand, camera Camera) (Item, error) {
	s, ok := drawUntil(r, camera, uniform(r, 1, 4), func(Scene) bool { return true })
	if !ok {
		return Item{}, errDraw("count")
	}
	n := s.Affected()
	return asked{s, "Count the quadrants with lesions. " + countOptions,
		countPhrase(n), letter(n - 1)}.item(r), nil
}

func drawMost(r *rand.Rand, camera Camera) (Item, error) {
	want := lesions[r.IntN(len(lesions))]
	s, ok := drawUntil(r, camera, uniform(r, 1, 4), func(s Scene) bool {
		most, ok := s.Most()
		return ok && most == want
	})
	if !ok {
		return Item{}, errDraw("most")
	}
	return asked{s, "Which lesion is in most quadrants? " + lesionOptions,
		"mostly " + want.String(), letter(int(want - Microaneurysms))}.item(r), nil
}

func drawWhich(r *rand.Rand, camera Camera) (Item, error) {
	want := 1 + r.IntN(3)
	s, ok := drawUntil(r, camera, uniform(r, want, 4), func(s Scene) bool {
		return len(s.Present()) == want
	})
	if !ok {
		return Item{}, errDraw("which")
	}
	var letters []string
	for _, l := range s.Present() {
		letters = append(letters, letter(int(l-Microaneurysms)))
	}
	return asked{s, "Which lesions are there? " + lesionOptions,
		listing(s), strings.Join(letters, ",")}.item(r), nil
}

func drawMore(r *rand.Rand, camera Camera) (Item, error) {
	want := r.IntN(2) == 0
	s, ok := drawUntil(r, camera, uniform(r, 1, 4), func(s Scene) bool {
		return (s.Affected() >= 3) == want
	})
	if !ok {
		return Item{}, errDraw("more")
	}
	answer := "B"
	if want {
		answer = "A"
	}
	return asked{s, "Three or more quadrants have lesions. " + truthOptions,
		countPhrase(s.Affected()), answer}.item(r), nil
}

// diagnoses in the order in which they are drawn, each as often.
var diagnoses = [...]string{Severe, Moderate, Mild, Degeneration, Glaucoma, Healthy}

func drawDiagnosis(r *rand.Rand, camera Camera) (Item, error) {
	s, ok := drawDiagnosed(r, diagnoses[r.IntN(len(diagnoses))], camera)
	if !ok {
		return Item{}, errDraw("diagnosis")
	}
	return asked{s, "What is the diagnosis?", evidence(s) + s.Diagnosis(), s.Diagnosis()}.item(r), nil
}

// drawDiagnosed draws a scene with the given diagnosis.
func drawDiagnosed(r *rand.Rand, want string, camera Camera) (Scene, bool) {
	lo, hi := 1, 4
	switch want {
	case Severe:
		lo = 3
	case Glaucoma, Healthy:
		lo, hi = 0, 0
	}
	return drawUntil(r, camera, uniform(r, lo, hi), func(s Scene) bool { return s.Diagnosis() == want })
}

// evidence is the count that the retinopathy grades turn on; empty otherwise.
func evidence(s Scene) string {
	if n := s.Count(Haemorrhages); n > 0 {
		return "haemorrhages in " + numbers[n] + ", "
	}
	return ""
}

func countPhrase(n int) string {
	if n == 1 {
		return "one quadrant"
	}
	return numbers[n] + " quadrants"
}

func letter(i int) string { return string(rune('A' + i)) }

func errDraw(what string) error {
	return fmt.Errorf("phantom: no scene found for a %s question", what)
}
