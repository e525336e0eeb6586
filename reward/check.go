package reward

import (
	"context"
	"fmt"

	"github.com/uadt-train/uadt-train/rollout"
)

// Prediction is one response to be scored offline.
type Prediction struct {
	ID   string // id of its question
	Text string
	// Finish defaults to stop. A file that does not record it cannot tell
	// truncated responses from finished ones.
	Finish rollout.Finish
}

// CheckRow is one scored prediction.
type CheckRow struct {
	ID      string
	Gold    string
	Score   Score
	Lenient Answer
}

// CheckReport is the outcome of [Check].
type CheckReport struct {
	Rows       []CheckRow // in the order of the predictions
	Scored     int        // rows whose score is not missing
	Missing    int        // rows whose score is missing
	Correct    int
	Lenient    int             // rows right by lenient extraction
	LetterOnly int             // choice questions whose options could not be parsed
	MeanTotal  float64         // mean reward of the scored rows; 0 without any
	Parts      []PartTotal     // in the order of the scorer's parts
	Reasons    map[string]int  // "part: reason" -> number of rows
	Unknown    []string        // ids of predictions that match no record, in order
	Unanswered []string        // ids of records without a prediction, in order
	seen       map[string]bool // record ids that have a prediction
}

// PartTotal sums up one part over all rows.
type PartTotal struct {
	Name    string
	Mean    float64 // over the rows where it is not missing; 0 without any
	Scored  int
	Missing int
}

// Check scores predictions against the records they answer and lists the
// reasons. Several predictions of one record are all scored. A prediction
// without a record and a record without a prediction are listed, not scored.
// Two records of one id are an error.
func Check(ctx context.Context, scorer Scorer, records []rollout.Question, predictions []Prediction) (CheckReport, error) {
	byID := make(map[string]rollout.Question, len(records))
	for i, q := range records {
		if _, taken := byID[q.ID]; taken {
			return CheckReport{}, fmt.Errorf("record %d: id %q is taken by an earlier record", i, q.ID)
		}
		byID[q.ID] = q
	}
	r := CheckReport{Reasons: map[string]int{}, seen: map[string]bool{}}
	for i, p := range predictions {
		q, ok := byID[p.ID]
		if !ok {
			r.Unknown = append(r.Unknown, p.ID)
			continue
		}
		trace := rollout.Trace{Text: p.Text, Finish: p.Finish}
		score, err := scorer.Score(ctx, q, trace)
		if err != nil {
			return CheckReport{}, fmt.Errorf("prediction %d of record %q: %w", i, p.ID, err)
		}
		r.add(CheckRow{ID: p.ID, Gold: q.Gold, Score: score, Lenient: Lenient(q, trace)})
	}
	for _, q := range records {
		if !r.seen[q.ID] {
			r.Unanswered = append(r.Unanswered, q.ID)
		}
	}
	if r.Scored > 0 {
		r.MeanTotal /= float64(r.Scored)
	}
	for i := range r.Parts {
		if n := r.Parts[i].Scored; n > 0 {
			r.Parts[i].Mean /= float64(n)
		}
	}
	return r, nil
}

// add counts one row; means are sums until Check divides them.
func (r *CheckReport) add(row CheckRow) {
	r.seen[row.ID] = true
	r.Rows = append(r.Rows, row)
	if row.Score.Missing {
		r.Missing++
	} else {
		r.Scored++
		r.MeanTotal += row.Score.Total
	}
	if row.Score.Correct {
		r.Correct++
	}
	if row.Lenient.Exact {
		r.Lenient++
	}
	if row.Score.Answer.LetterOnly {
		r.LetterOnly++
	}
	for i, p := range row.Score.Parts {
		if i == len(r.Parts) {
			r.Parts = append(r.Parts, PartTotal{Name: p.Name})
		}
		if p.Missing {
			r.Parts[i].Missing++
		} else {
			r.Parts[i].Scored++
			r.Parts[i].Mean += p.Value
		}
		r.Reasons[p.Name+": "+string(p.Reason)]++
	}
}
