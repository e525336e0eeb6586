package phantom

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"image/png"
	"os"
	"path/filepath"

	"github.com/uadt-train/uadt-train/internal/dataset"
	"github.com/uadt-train/uadt-train/rollout"
)

// Summary says what Write has written.
type Summary struct {
	// Records and Images count by split.
	Records map[string]int
	Images  map[string]int
	// Files are the paths of the record files by split, below the directory.
	Files map[string]string
}

// writer writes the splits of one directory. No image may appear in two splits.
type writer struct {
	options Options
	dir     string
	owner   map[string]string // image digest -> split
	summary Summary
}

// marker is the file that says what a directory of images holds.
const marker = "PHANTOMS.txt"

// Wrote says whether Write put the image with this SHA-256, in hex, into dir, so
// that it shows nobody. Of images inside records it cannot know.
func Wrote(dir, digest string) bool {
	_, none := os.Stat(filepath.Join(dir, marker))
	_, other := os.Stat(filepath.Join(dir, imageName(digest)))
	return none == nil && other == nil
}

// imageName is the file of an image, in the folder of its set.
func imageName(digest string) string { return filepath.Join("images", digest+".png") }

// Write writes the sets that o asks for below dir: <split>.json, a file that says
// what they are and, unless Inline is set, images/<sha256>.png. It fails if an image would appear in two
// splits. A split's file appears whole or not at all.
func Write(ctx context.Context, dir string, o Options) (Summary, error) {
	if err := o.Validate(); err != nil {
		return Summary{}, err
	}
	w := &writer{options: o.withDefaults(), dir: dir, owner: map[string]string{}, summary: Summary{
		Records: map[string]int{}, Images: map[string]int{}, Files: map[string]string{}}}
	if err := os.MkdirAll(filepath.Join(dir, "images"), 0o755); err != nil {
		return Summary{}, fmt.Errorf("phantom: %w", err)
	}
	said := "The images of this folder are phantoms: drawings made by uadt-train, of nobody's eye.\n"
	if err := writeFile(filepath.Join(dir, marker), []byte(said)); err != nil {
		return Summary{}, fmt.Errorf("phantom: %w", err)
	}
	for _, c := range w.options.counts() {
		if c.records == 0 {
			continue
		}
		if err := w.split(ctx, c.name, c.records); err != nil {
			return Summary{}, fmt.Errorf("phantom: split %s: %w", c.name, err)
		}
	}
	return w.summary, nil
}

// split writes the records of one split, one per line of a JSON array.
func (w *writer) split(ctx context.Context, split string, n int) error {
	var out bytes.Buffer
	out.WriteString("[\n")
	for i := range n {
		if err := ctx.Err(); err != nil {
			return err
		}
		rec, err := w.make(split, i)
		if err != nil {
			return err
		}
		line, err := json.Marshal(rec)
		if err != nil {
			return fmt.Errorf("record %d: %w", i, err)
		}
		out.Write(line)
		if i < n-1 {
			out.WriteByte(',')
		}
		out.WriteByte('\n')
	}
	out.WriteString("]\n")
	name := split + ".json"
	if err := writeFile(filepath.Join(w.dir, name), out.Bytes()); err != nil {
		return err
	}
	w.summary.Records[split], w.summary.Files[split] = n, name
	return nil
}

func (w *writer) make(split string, index int) (dataset.Record, error) {
	if split == SplitCaptions {
		pair := w.options.CaptionPair(index)
		image, err := w.image(split, pair.Scene)
		if err != nil {
			return dataset.Record{}, err
		}
		return dataset.Record{
			ID: fmt.Sprintf("%s-%06d", split, index), Image: dataset.Strings{image},
			Conversations: []dataset.Turn{
				{From: "human", Value: pair.Instruction}, {From: "gpt", Value: pair.Text}},
			QuestionType: string(rollout.Caption), Modality: "CFP"}, nil
	}
	item, err := w.options.Question(split, index)
	if err != nil {
		return dataset.Record{}, err
	}
	var images []string
	for _, s := range item.Scenes {
		image, err := w.image(split, s)
		if err != nil {
			return dataset.Record{}, err
		}
		images = append(images, image)
	}
	return w.options.record(split, item, index, images), nil
}

// image encodes the scene and returns its reference for a record.
func (w *writer) image(split string, s Scene) (string, error) {
	var out bytes.Buffer
	fast := png.Encoder{CompressionLevel: png.BestSpeed} // half the time for a fifth more bytes
	if err := fast.Encode(&out, Render(s, w.options.Size)); err != nil {
		return "", fmt.Errorf("encode image: %w", err)
	}
	sum := sha256.Sum256(out.Bytes())
	digest := hex.EncodeToString(sum[:])
	if owner, ok := w.owner[digest]; ok && owner != split {
		return "", fmt.Errorf("image %s is also in split %s: splits share no image", digest, owner)
	} else if !ok {
		w.owner[digest] = split
		w.summary.Images[split]++
	}
	if w.options.Inline {
		return base64.StdEncoding.EncodeToString(out.Bytes()), nil
	}
	name := imageName(digest)
	return name, writeFile(filepath.Join(w.dir, name), out.Bytes())
}

// writeFile writes data under a temporary name and renames it.
func writeFile(path string, data []byte) error {
	tmp := path + ".part"
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
