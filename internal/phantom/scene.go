package phantom

import "strings"

// Lesion is a kind of lesion, or Clear for none.
type Lesion uint8

// The lesions a quadrant may show.
const (
	Clear Lesion = iota
	Microaneurysms
	Haemorrhages
	Exudates
	Drusen
)

// Lesions lists the kinds in the order of the answer options A to D.
var lesions = [...]Lesion{Microaneurysms, Haemorrhages, Exudates, Drusen}

// String is the word used in captions, traces and options.
func (l Lesion) String() string {
	return [...]string{"clear", "microaneurysms", "haemorrhages", "exudates", "drusen"}[l]
}

// Quadrant is a quarter of the image as the viewer sees it.
type Quadrant uint8

// The quadrants, row by row.
const (
	UpperLeft Quadrant = iota
	UpperRight
	LowerLeft
	LowerRight
)

// String is the phrase used in captions and traces.
func (q Quadrant) String() string {
	return [...]string{"upper left", "upper right", "lower left", "lower right"}[q]
}

// centre is the sign of the quadrant's centre: x to the right, y downwards.
func (q Quadrant) centre() (x, y float64) {
	x, y = -1, -1
	if q == UpperRight || q == LowerRight {
		x = 1
	}
	if q == LowerLeft || q == LowerRight {
		y = 1
	}
	return x, y
}

// Finding is what one quadrant shows.
type Finding struct {
	Lesion Lesion
	Marks  int     // number of single lesions, at least 1 unless Clear
	Size   float64 // factor on the lesion's usual radius, about 0.8 to 1.3
}

// Scene says completely what a phantom shows; Seed draws the rest (vessel
// course, places within the quadrant, shading).
type Scene struct {
	DiscRight bool       // the optic disc lies to the right (a right eye)
	Cupped    bool       // the cup fills most of the disc
	Quadrants [4]Finding // indexed by Quadrant
	Contrast  float64    // visibility of the lesions, 1 is plain, 0.5 faint
	Camera    Camera
	Seed      uint64
}

// Camera is the look of the photographs of one split.
type Camera uint8

// The cameras: Clinic takes train and in-domain phantoms, Field (cooler, dimmer,
// stronger vignette) the out-of-domain ones.
const (
	Clinic Camera = iota
	Field
)

// Affected counts the quadrants with a lesion, 0 to 4.
func (s Scene) Affected() int {
	n := 0
	for _, f := range s.Quadrants {
		if f.Lesion != Clear {
			n++
		}
	}
	return n
}

// Count is the number of quadrants that show l.
func (s Scene) Count(l Lesion) int {
	n := 0
	for _, f := range s.Quadrants {
		if f.Lesion == l {
			n++
		}
	}
	return n
}

// Present lists the lesions shown, in option order.
func (s Scene) Present() []Lesion {
	var present []Lesion
	for _, l := range lesions {
		if s.Count(l) > 0 {
			present = append(present, l)
		}
	}
	return present
}

// Most is the lesion in more quadrants than any other; ok is false when there
// is none or a tie.
func (s Scene) Most() (most Lesion, ok bool) {
	best := 0
	for _, l := range lesions {
		switch n := s.Count(l); {
		case n > best:
			best, most, ok = n, l, true
		case n == best:
			ok = false
		}
	}
	return most, ok
}

// Hard reports whether the scene needs more than a look at one place: two or
// more affected quadrants.
func (s Scene) Hard() bool { return s.Affected() >= 2 }

// The diagnoses, from the most serious.
const (
	Severe       = "severe retinopathy"
	Moderate     = "moderate retinopathy"
	Mild         = "mild retinopathy"
	Degeneration = "macular degeneration"
	Glaucoma     = "glaucoma"
	Healthy      = "healthy"
)

// Diagnosis is the phantoms' rule, a simplification of grading scales that is
// good for nothing but phantoms: haemorrhages in three or more quadrants are
// severe retinopathy, in one or two moderate; microaneurysms or exudates
// without haemorrhages mild; drusen alone macular degeneration; a cupped disc
// alone glaucoma; nothing healthy. The first that holds counts.
func (s Scene) Diagnosis() string {
	switch {
	case s.Count(Haemorrhages) >= 3:
		return Severe
	case s.Count(Haemorrhages) >= 1:
		return Moderate
	case s.Count(Microaneurysms)+s.Count(Exudates) >= 1:
		return Mild
	case s.Count(Drusen) >= 1:
		return Degeneration
	case s.Cupped:
		return Glaucoma
	}
	return Healthy
}

// disc is the phrase for the optic disc.
func (s Scene) disc() string {
	if s.Cupped {
		return "disc cupped"
	}
	return "disc normal"
}

// Scan is the description part by part, comma-separated: the optic disc and
// the four quadrants in the given order, a permutation of 0 to 4 where 4 is the
// disc. Readers go round in any order; a policy learns a distribution over
// orders, which is uncertainty that costs no accuracy.
func (s Scene) Scan(order []int) string {
	parts := make([]string, 0, len(order))
	for _, k := range order {
		if k == discPart {
			parts = append(parts, s.disc())
			continue
		}
		parts = append(parts, Quadrant(k).String()+" "+s.Quadrants[k].Lesion.String())
	}
	return strings.Join(parts, ", ")
}

// discPart stands for the disc in a scanning order; scanParts is how many parts
// a scan has.
const (
	discPart  = 4
	scanParts = 5
)
