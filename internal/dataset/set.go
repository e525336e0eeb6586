package dataset

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/uadt-train/uadt-train/rollout"
)

// Images is where a set puts the images it meets; internal/blob's Store is one.
type Images interface {
	Put(data []byte) (digest string, err error)
}

// Set is an opened file: an index in memory, the records on disk. Its methods
// may be called from several goroutines.
type Set struct {
	options  Options
	file     *os.File
	index    *index
	layout   csvLayout // of CSV and TSV
	good     []int32   // record numbers that passed the check
	bad      []*BadRecord
	resolver imageResolver
	images   Images
	cut      atomic.Int64
}

// Open indexes the file (or reads its index), checks every record and fails
// with a *TooManyBadError if too many are bad. A check reads and inspects each
// image, does not decode it, and is kept in the index file.
func Open(ctx context.Context, images Images, o Options) (*Set, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("dataset %s: %w", o.Path, err)
	}
	file, err := os.Open(o.Path)
	if err != nil {
		return nil, fmt.Errorf("dataset: %w", err)
	}
	s := &Set{options: o, file: file, images: images,
		resolver: imageResolver{root: o.ImageRoot, limits: o.Limits}}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("dataset %s: %w", o.Path, err), s.Close())
	}
	return s, nil
}

func (s *Set) open(ctx context.Context) error {
	info, err := s.file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: not a regular file", ErrFormat)
	}
	fresh := false
	if s.index, err = loadIndex(s.options.Path, info); err != nil { // missing, stale or broken: made again
		if s.index, err = buildIndex(s.options.Path, s.file); err != nil {
			return err
		}
		fresh = true
	}
	if s.index.Format == formatCSV || s.index.Format == formatTSV {
		if err := s.openRows(); err != nil {
			return err
		}
	}
	if s.options.Images != "" {
		if s.resolver.lookup, err = openKeyed(s.options.Images); err != nil {
			return err
		}
	}
	if s.index.Checked != s.options.checkKey() {
		if err := s.check(ctx); err != nil {
			return err
		}
		fresh = true
	}
	if fresh && !s.options.NoIndexFile {
		if err := s.index.save(s.options.Path); err != nil && !onlyCostsTime(err) {
			return fmt.Errorf("index file: %w", err)
		}
	}
	return s.admit()
}

// openRows restores the header and, for files whose image cells refer to
// other rows by index, the way to find them.
func (s *Set) openRows() error {
	s.layout = csvLayout{comma: commaOf(s.options.Path), names: s.index.Header, columns: map[string]int{}}
	for i, name := range s.layout.names {
		s.layout.columns[strings.ToLower(name)] = i
	}
	if _, ok := s.layout.columns["index"]; !ok {
		return nil
	}
	byIndex := map[string]int32{}
	column := s.layout.columns["index"]
	_, _, err := scanCSV(io.NewSectionReader(s.file, 0, s.index.Size), s.layout.comma, func(i int, _ csvLayout, row []string) {
		if key := cell(row, column); key != "" {
			byIndex[strings.Clone(key)] = int32(i)
		}
	})
	if err != nil {
		return err
	}
	s.resolver.rows = func(key string) (string, bool, error) {
		i, ok := byIndex[key]
		if !ok {
			return "", false, nil
		}
		row, err := s.row(int(i))
		if err != nil {
			return "", false, err
		}
		if row["image"] == key {
			return "", false, nil // a row that refers to itself
		}
		return row["image"], true, nil
	}
	return nil
}

// check tries every record and notes the bad ones in the index.
func (s *Set) check(ctx context.Context) error {
	s.index.Bad = nil
	for i := range s.index.spans {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, _, err := s.load(i); err != nil {
			s.index.Bad = append(s.index.Bad, badRef{i, err.Error()})
		}
	}
	s.index.Checked = s.options.checkKey()
	return nil
}

// admit lists the good records and applies the limit on bad ones.
func (s *Set) admit() error {
	if s.index.Records == 0 {
		return fmt.Errorf("%w: no records", ErrFormat)
	}
	bad := map[int]bool{}
	for _, b := range s.index.Bad {
		bad[b.Record] = true
		s.bad = append(s.bad, &BadRecord{File: s.options.Path, Record: b.Record, Err: errors.New(b.Reason)})
	}
	if share := float64(len(bad)) / float64(s.index.Records); share > s.options.MaxBadShare || len(bad) == s.index.Records {
		return &TooManyBadError{File: s.options.Path, Bad: len(bad), Records: s.index.Records,
			Limit: s.options.MaxBadShare, First: s.bad[:min(3, len(s.bad))]}
	}
	s.good = make([]int32, 0, s.index.Records-len(bad))
	for i := range s.index.Records {
		if !bad[i] {
			s.good = append(s.good, int32(i))
		}
	}
	return nil
}

// Len is the number of good records.
func (s *Set) Len() int { return len(s.good) }

// Name is the split's name.
func (s *Set) Name() string { return s.options.Name }

// Bad lists the records that were left out.
func (s *Set) Bad() []*BadRecord { return s.bad }

// Digest is the SHA-256 of the file, lower-case hex.
func (s *Set) Digest() string { return s.index.Digest }

// Cut counts the images left out so far because a question had more than
// MaxImages.
func (s *Set) Cut() int64 { return s.cut.Load() }

// Close releases the files.
func (s *Set) Close() error {
	err := s.file.Close()
	if s.resolver.lookup != nil {
		err = errors.Join(err, s.resolver.lookup.file.Close())
	}
	return err
}

// Question reads good record i, puts its images into the store, and returns it
// as the ring sees it. It fails with a *BadRecord if the record is no longer
// what the check saw.
func (s *Set) Question(ctx context.Context, i int) (rollout.Question, error) {
	if i < 0 || i >= len(s.good) {
		return rollout.Question{}, fmt.Errorf("dataset %s: question %d of %d", s.options.Path, i, len(s.good))
	}
	if err := ctx.Err(); err != nil {
		return rollout.Question{}, err
	}
	number := int(s.good[i])
	rec, loaded, err := s.load(number)
	if err != nil {
		return rollout.Question{}, &BadRecord{File: s.options.Path, Record: number, Err: err}
	}
	var images []rollout.Image
	for _, l := range loaded {
		digest, err := s.images.Put(l.data)
		if err != nil {
			return rollout.Question{}, fmt.Errorf("dataset %s, record %d: %w", s.options.Path, number, err)
		}
		images = append(images, rollout.Image{Digest: digest, MediaType: l.mediaType})
	}
	s.cut.Add(int64(max(0, len(rec.Image)-s.options.MaxImages)))
	return s.question(number, rec, images)
}

// loadedImage is an image that passed inspection.
type loadedImage struct {
	data      []byte
	mediaType string
}

// load reads record number and inspects its images.
func (s *Set) load(number int) (Record, []loadedImage, error) {
	rec, err := s.record(number)
	if err != nil {
		return Record{}, nil, err
	}
	if _, _, _, err := rec.split(); err != nil {
		return Record{}, nil, err
	}
	if kind := rollout.Kind(rec.QuestionType); !knownKind(kind) {
		return Record{}, nil, fmt.Errorf("%w: question_type %q", ErrFields, kind)
	}
	if len(rec.Image) == 0 {
		return Record{}, nil, fmt.Errorf("%w: no image", ErrFields)
	}
	refs := rec.Image[:min(len(rec.Image), s.options.MaxImages)]
	images := make([]loadedImage, len(refs))
	for i, ref := range refs {
		data, err := s.resolver.bytes(ref)
		if err != nil {
			return Record{}, nil, fmt.Errorf("image %d: %w", i, err)
		}
		mediaType, err := inspect(data, s.options.Limits)
		if err != nil {
			return Record{}, nil, fmt.Errorf("image %d: %w", i, err)
		}
		images[i] = loadedImage{data, mediaType}
	}
	return rec, images, nil
}

func knownKind(k rollout.Kind) bool {
	switch k {
	case "", rollout.SingleChoice, rollout.MultipleChoice, rollout.TrueFalse, rollout.Open, rollout.Caption:
		return true
	}
	return false
}

// record reads and parses record number.
func (s *Set) record(number int) (Record, error) {
	switch s.index.Format {
	case formatCSV, formatTSV:
		row, err := s.row(number)
		if err != nil {
			return Record{}, err
		}
		rec, err := rowRecord(row)
		if err == nil && rec.ID == "" {
			rec.ID = strconv.Itoa(number)
		}
		return rec, err
	}
	data, err := readSpan(s.file, s.index.spans[number])
	if err != nil {
		return Record{}, err
	}
	return parseJSONRecord(data)
}

func (s *Set) row(number int) (map[string]string, error) {
	data, err := readSpan(s.file, s.index.spans[number])
	if err != nil {
		return nil, err
	}
	return s.layout.row(data)
}
