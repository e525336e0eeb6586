package phantom

import (
	"fmt"

	"github.com/uadt-train/uadt-train/internal/dataset"
	"github.com/uadt-train/uadt-train/rollout"
)

// Question makes item index of a question split. Kinds alternate, so that every
// run of len(Kinds) items holds each once.
func (o Options) Question(split string, index int) (Item, error) {
	o = o.withDefaults()
	r := stream(o.Seed, split, index)
	kind := o.Kinds[index%len(o.Kinds)]
	draw := drawBasic
	if r.Float64() < o.ComplexShare {
		draw = drawComplex
	}
	item, err := draw(r, kind, camera(split))
	if err != nil {
		return Item{}, fmt.Errorf("split %s, item %d: %w", split, index, err)
	}
	item.ID = fmt.Sprintf("%s-%06d", split, index)
	return item, nil
}

// CaptionPair makes pair index of the caption split.
func (o Options) CaptionPair(index int) Caption {
	return drawCaption(stream(o.Seed, SplitCaptions, index), camera(SplitCaptions))
}

// reason picks the trace of an SFT record. Of every run of records with the
// same kind the share LongShare scans, spread by a low-discrepancy sequence
// rather than by chance: small sets keep the share.
func (o Options) reason(item Item, index int) string {
	round := index / len(o.Kinds)
	if long := int(float64(round+1)*o.LongShare) > int(float64(round)*o.LongShare); long {
		return item.Long
	}
	return item.Short
}

// record is the item in the file format. Evaluation splits carry no trace, the
// RL split none either: it has rewards instead.
func (o Options) record(split string, item Item, index int, images []string) dataset.Record {
	rec := dataset.Record{
		ID:    item.ID,
		Image: images,
		Conversations: []dataset.Turn{
			{From: "human", Value: item.Question},
			{From: "gpt", Value: item.Answer},
		},
		QuestionType: string(item.Kind),
		Modality:     "CFP",
	}
	if split == SplitSFT {
		rec.Reason = o.reason(item, index)
	}
	if item.Level == rollout.Complex {
		rec.PMCID, rec.Title = "phantom-"+item.ID, "Phantom case "+item.ID
	}
	return rec
}

// corpusItems is how many captions and questions a corpus holds.
const corpusItems = 400

// Corpus is text of the kind that the sets made with o consist of, for
// learning a tokenizer: chat turns with captions, questions, traces and
// answers, complex ones among them, none of a split that is written.
func Corpus(o Options) ([]string, error) {
	o = o.withDefaults()
	var texts []string
	for i := range corpusItems {
		of := o
		if i%40 == 39 { // their words, too rare to displace those of basic ones
			of.ComplexShare = 1
		}
		caption := drawCaption(stream(o.Seed, "corpus-captions", i), Clinic)
		item, err := of.Question("corpus", i)
		if err != nil {
			return nil, err
		}
		texts = append(texts, "system\n"+dataset.MicroPrompt().System, "user\n"+item.Question, "assistant\n",
			caption.Instruction, caption.Text,
			dataset.Response(item.Short, item.Answer), dataset.Response(item.Long, item.Answer))
	}
	return texts, nil
}
