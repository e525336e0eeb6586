package phantom

import (
	"math/rand/v2"
	"strings"
)

// Caption is a pair of stage 1: what the policy is asked to describe and the
// description. The scan always comes first, so that stage 1 teaches no
// conclusion at a glance.
type Caption struct {
	Scene       Scene
	Instruction string
	Text        string
}

// The instructions of caption pairs. Each but the first asks for one
// conclusion after the scan.
const (
	describe  = "Describe the image."
	withCount = "Describe the image and count the quadrants."
	withMain  = "Describe the image and name the main lesion."
	withList  = "Describe the image and list the lesions."
	withGrade = "Describe the image and give the diagnosis."
)

// drawCaption draws a scene, one of the instructions that it can answer, and
// the text.
func drawCaption(r *rand.Rand, camera Camera) Caption {
	s := drawScene(r, r.IntN(5), camera)
	choices := []Caption{
		{Instruction: describe},
		{Instruction: withGrade, Text: ": " + evidence(s) + s.Diagnosis()},
	}
	if n := s.Affected(); n > 0 {
		choices = append(choices,
			Caption{Instruction: withCount, Text: ": " + countPhrase(n)},
			Caption{Instruction: withList, Text: ": " + listing(s)})
	}
	if most, ok := s.Most(); ok {
		choices = append(choices, Caption{Instruction: withMain, Text: ": mostly " + most.String()})
	}
	c := choices[r.IntN(len(choices))]
	c.Scene, c.Text = s, s.Scan(r.Perm(scanParts))+c.Text
	c.Instruction = setting(r, s) + c.Instruction
	return c
}

// setting is what stands before an instruction: nothing, a history, or a
// glossary. It carries no answer. With it prompts differ in length and words,
// so that the later stages, which ask other things, find a description that
// does not hang on one prompt.
func setting(r *rand.Rand, s Scene) string {
	switch r.IntN(4) {
	case 0:
		return history(r, s.Diagnosis()) + " "
	case 1:
		return "Lesions: " + lesionOptions + ". "
	case 2:
		return "Quadrants: " + countOptions + ". "
	}
	return ""
}

// listing names the lesions shown, in option order, comma-separated.
func listing(s Scene) string {
	var words []string
	for _, l := range s.Present() {
		words = append(words, l.String())
	}
	return strings.Join(words, ", ")
}
