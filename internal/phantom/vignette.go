package phantom

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/uadt-train/uadt-train/rollout"
)

// ordinals name the images of a complex question in order.
var ordinals = [...]string{"first", "second", "third"}

// drawComplex draws a vignette with two or three images and a question of the
// given kind that needs all of them.
func drawComplex(r *rand.Rand, kind rollout.Kind, camera Camera) (Item, error) {
	n := 2 + r.IntN(2)
	scenes := make([]Scene, n)
	for i := range scenes {
		s, ok := drawDiagnosed(r, diagnoses[r.IntN(len(diagnoses))], camera)
		if !ok {
			return Item{}, errDraw("complex")
		}
		scenes[i] = s
	}
	var question, conclusion, answer string
	switch kind {
	case rollout.Open:
		answer = worst(scenes)
		question, conclusion = "What is the diagnosis of the worst image?", answer
	case rollout.SingleChoice:
		best := makeUnique(r, scenes, camera)
		question = "Which image has lesions in most quadrants? " + imageOptions(n)
		conclusion, answer = ordinals[best], letter(best)
	case rollout.MultipleChoice:
		bleeding := withHaemorrhages(r, scenes, camera)
		question = "Which images have haemorrhages? " + imageOptions(n)
		var words, letters []string
		for _, i := range bleeding {
			words, letters = append(words, ordinals[i]), append(letters, letter(i))
		}
		conclusion, answer = strings.Join(words, ", "), strings.Join(letters, ",")
	case rollout.TrueFalse:
		question, conclusion, answer = allHaveLesions(scenes)
	default:
		return Item{}, fmt.Errorf("phantom: no complex question of kind %q", kind)
	}
	return Item{
		Scenes: scenes, Kind: kind, Level: rollout.Complex, Hard: true,
		Question: history(r, worst(scenes)) + " " + question, Answer: answer,
		Short: glance + conclusion, Long: scanAll(r, scenes) + ": " + conclusion,
	}, nil
}

// worst is the most serious diagnosis among the scenes.
func worst(scenes []Scene) string {
	for _, d := range diagnoses {
		for _, s := range scenes {
			if s.Diagnosis() == d {
				return d
			}
		}
	}
	return Healthy
}

// makeUnique redraws scenes until one has more affected quadrants than any
// other, and returns its index.
func makeUnique(r *rand.Rand, scenes []Scene, camera Camera) int {
	best := r.IntN(len(scenes))
	top := 2 + r.IntN(3)
	for i := range scenes {
		affected := top
		if i != best {
			affected = r.IntN(top)
		}
		scenes[i] = drawScene(r, affected, camera)
	}
	return best
}

// withHaemorrhages makes sure that at least one scene has haemorrhages and
// lists the indices of those that do.
func withHaemorrhages(r *rand.Rand, scenes []Scene, camera Camera) []int {
	var with []int
	for i, s := range scenes {
		if s.Count(Haemorrhages) > 0 {
			with = append(with, i)
		}
	}
	if len(with) > 0 {
		return with
	}
	i := r.IntN(len(scenes))
	s := drawScene(r, 2, camera)
	s.Quadrants[r.IntN(4)] = drawFinding(r, Haemorrhages)
	scenes[i] = s
	return []int{i}
}

func allHaveLesions(scenes []Scene) (question, conclusion, answer string) {
	question = "All images have lesions. " + truthOptions
	for i, s := range scenes {
		if s.Affected() == 0 {
			return question, ordinals[i] + " has no lesions", "B"
		}
	}
	return question, "all have lesions", "A"
}

func imageOptions(n int) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = letter(i) + ". " + ordinals[i]
	}
	return strings.Join(parts, " ")
}

// scanAll scans image after image.
func scanAll(r *rand.Rand, scenes []Scene) string {
	parts := make([]string, len(scenes))
	for i, s := range scenes {
		parts[i] = ordinals[i] + " " + s.Scan(r.Perm(scanParts))
	}
	return strings.Join(parts, "; ")
}

// history is a short vignette: age, complaint, history, examination. It hints
// at the disease in two of three cases and misleads never.
func history(r *rand.Rand, disease string) string {
	complaint := [...]string{"blurred sight", "dark spots", "no complaint"}[r.IntN(3)]
	past := "no history"
	if r.IntN(3) > 0 {
		switch disease {
		case Severe, Moderate, Mild:
			past = "high sugar"
		case Glaucoma:
			past = "high pressure"
		case Degeneration:
			past = "smoker"
		}
	}
	return fmt.Sprintf("Age %d, %s, %s.", 40+r.IntN(50), complaint, past)
}
