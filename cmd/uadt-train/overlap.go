package main

import (
	"context"
	"fmt"

	"github.com/uadt-train/uadt-train/internal/blob"
	"github.com/uadt-train/uadt-train/internal/dataset"
	"github.com/uadt-train/uadt-train/internal/vision"
	"github.com/uadt-train/uadt-train/rollout"
)

// nearBits is in how many of 256 bits the hashes of two pictures of one scene may
// differ. Among phantoms, which look more alike than photographs, strangers
// differ in 11 and more.
const nearBits = 10

// overlap counts evaluation images that training files hold too.
type overlap struct {
	Images int      `json:"images"`     // distinct evaluation images
	Exact  int      `json:"exact"`      // the same file
	Near   int      `json:"near"`       // another file that looks the same
	First  []string `json:"first_near"` // a few of the pairs, by digest
}

// seenImages are the images of training files.
type seenImages struct {
	digests map[string]bool
	hashes  map[vision.Hash]string // one digest of each
}

// findOverlap compares the images of questions with those of training files.
func findOverlap(ctx context.Context, store *blob.Store, questions []evalQuestion, files []string, options func(string) dataset.Options) (*overlap, error) {
	if len(files) == 0 {
		return nil, nil
	}
	seen := seenImages{digests: map[string]bool{}, hashes: map[vision.Hash]string{}}
	for _, file := range files {
		records, err := readQuestions(ctx, store, options(file), 0)
		if err != nil {
			return nil, err
		}
		for _, q := range records {
			if err := seen.add(ctx, store, q.Images()); err != nil {
				return nil, fmt.Errorf("%s: record %s: %w", file, q.ID, err)
			}
		}
	}
	found := &overlap{}
	counted := map[string]bool{}
	for _, q := range questions {
		for _, image := range q.question.Images() {
			if counted[image.Digest] {
				continue
			}
			counted[image.Digest] = true
			if err := found.compare(ctx, store, seen, image); err != nil {
				return nil, fmt.Errorf("%s: record %s: %w", q.dataset, q.question.ID, err)
			}
		}
	}
	return found, nil
}

func (s seenImages) add(ctx context.Context, store *blob.Store, images []rollout.Image) error {
	for _, image := range images {
		if s.digests[image.Digest] {
			continue
		}
		hash, err := hashOf(ctx, store, image.Digest)
		if err != nil {
			return err
		}
		s.digests[image.Digest] = true
		s.hashes[hash] = image.Digest
	}
	return nil
}

func (o *overlap) compare(ctx context.Context, store *blob.Store, seen seenImages, image rollout.Image) error {
	o.Images++
	if seen.digests[image.Digest] {
		o.Exact++
		return nil
	}
	hash, err := hashOf(ctx, store, image.Digest)
	if err != nil {
		return err
	}
	for other, digest := range seen.hashes {
		if hash.Distance(other) <= nearBits {
			o.Near++
			if len(o.First) < 5 {
				o.First = append(o.First, image.Digest+" looks like "+digest)
			}
			break
		}
	}
	return nil
}

func hashOf(ctx context.Context, store *blob.Store, digest string) (vision.Hash, error) {
	data, err := store.Get(ctx, digest)
	if err != nil {
		return vision.Hash{}, err
	}
	image, err := vision.Decode(data, vision.DefaultMaxSourcePixels)
	if err != nil {
		return vision.Hash{}, err
	}
	return image.DifferenceHash(), nil
}
