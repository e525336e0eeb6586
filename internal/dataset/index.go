package dataset

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// index is where the records of a file lie. It is kept beside the file, in
// <file>.index, and made again when size, time and digest no longer fit.
type index struct {
	Digest   string    `json:"digest"` // SHA-256 of the file
	Size     int64     `json:"size"`
	Modified time.Time `json:"modified"`
	Format   format    `json:"format"`
	Records  int       `json:"records"`
	Header   []string  `json:"header,omitempty"` // column names of CSV and TSV
	// Checked names the options under which Bad was found; empty before a check.
	Checked string   `json:"checked,omitempty"`
	Bad     []badRef `json:"bad,omitempty"`

	spans []span
}

// badRef is a bad record as the index keeps it.
type badRef struct {
	Record int    `json:"record"`
	Reason string `json:"reason"`
}

type format string

const (
	formatArray format = "json"
	formatLines format = "jsonl"
	formatCSV   format = "csv"
	formatTSV   format = "tsv"
)

// formatOf goes by the name; a .json file that does not start with [ but with
// { is taken as lines.
func formatOf(path string, file io.ReaderAt) format {
	name := strings.ToLower(path)
	switch {
	case strings.HasSuffix(name, ".csv"):
		return formatCSV
	case strings.HasSuffix(name, ".tsv"):
		return formatTSV
	case strings.HasSuffix(name, ".jsonl"):
		return formatLines
	}
	var head [512]byte
	n, _ := file.ReadAt(head[:], 0) // a file that cannot be read fails in the scan
	if trimmed := bytes.TrimLeft(head[:n], "\ufeff \n\r\t"); len(trimmed) > 0 && trimmed[0] == '{' {
		return formatLines
	}
	return formatArray
}

// buildIndex scans the file once, for records and digest together.
func buildIndex(path string, file *os.File) (*index, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	hash := sha256.New()
	reader := io.TeeReader(io.NewSectionReader(file, 0, info.Size()), hash)
	ix := &index{Size: info.Size(), Modified: info.ModTime().UTC(), Format: formatOf(path, file)}
	switch ix.Format {
	case formatArray:
		ix.spans, err = scanArray(reader)
	case formatLines:
		ix.spans, err = scanLines(reader)
	default:
		var layout csvLayout
		layout, ix.spans, err = scanCSV(reader, commaOf(path), nil)
		ix.Header = layout.names
	}
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, reader); err != nil { // what a reader left unread
		return nil, err
	}
	ix.Digest, ix.Records = hex.EncodeToString(hash.Sum(nil)), len(ix.spans)
	return ix, nil
}

const indexMagic = "uadt-train index 1\n"

// errStaleIndex says that an index is not that of the file; it is made again.
var errStaleIndex = errors.New("index does not fit the file")

// loadIndex reads the index beside path if it fits info.
func loadIndex(path string, info fs.FileInfo) (*index, error) {
	data, err := os.ReadFile(path + ".index")
	if err != nil {
		return nil, err
	}
	ix, err := parseIndex(data)
	if err != nil {
		return nil, err
	}
	if ix.Size != info.Size() || !ix.Modified.Equal(info.ModTime()) {
		return nil, errStaleIndex
	}
	written, err := os.Stat(path + ".index")
	if err != nil {
		return nil, err
	}
	if written.ModTime().Sub(info.ModTime()) < settled {
		digest, err := digestOf(path)
		if err != nil {
			return nil, err
		}
		if digest != ix.Digest {
			return nil, errStaleIndex
		}
	}
	return ix, nil
}

// settled is how much older than its index a file must be for its time to be
// believed: a file written again within the resolution of the clock keeps its
// time. A younger one is compared by digest, which costs one read of it.
const settled = 2 * time.Second

func digestOf(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", closing(file, err)
	}
	return hex.EncodeToString(hash.Sum(nil)), file.Close()
}

// parseIndex reads magic, a line of JSON and pairs of offset and length.
func parseIndex(data []byte) (*index, error) {
	rest, ok := bytes.CutPrefix(data, []byte(indexMagic))
	if !ok {
		return nil, fmt.Errorf("%w: not an index", ErrFormat)
	}
	header, body, ok := bytes.Cut(rest, []byte("\n"))
	ix := &index{}
	if !ok || json.Unmarshal(header, ix) != nil {
		return nil, fmt.Errorf("%w: index header", ErrFormat)
	}
	if ix.Records < 0 || len(body) != 16*ix.Records || ix.Records > len(body) {
		return nil, fmt.Errorf("%w: index of %d records with %d bytes", ErrFormat, ix.Records, len(body))
	}
	ix.spans = make([]span, ix.Records)
	for i := range ix.spans {
		s := span{int64(binary.LittleEndian.Uint64(body[16*i:])), int64(binary.LittleEndian.Uint64(body[16*i+8:]))}
		if s.Offset < 0 || s.Length < 0 || s.Offset > ix.Size-s.Length {
			return nil, fmt.Errorf("%w: index entry %d lies outside the file", ErrFormat, i)
		}
		ix.spans[i] = s
	}
	for _, b := range ix.Bad {
		if b.Record < 0 || b.Record >= ix.Records {
			return nil, fmt.Errorf("%w: index names bad record %d of %d", ErrFormat, b.Record, ix.Records)
		}
	}
	return ix, nil
}

// save writes the index beside path, whole or not at all.
func (ix *index) save(path string) error {
	header, err := json.Marshal(ix)
	if err != nil {
		return err
	}
	// A name of its own: another process may index the same file just now.
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".index.*.part")
	if err != nil {
		return err
	}
	tmp := file.Name()
	w := bufio.NewWriter(file)
	w.WriteString(indexMagic) // errors of a bufio.Writer stick until Flush
	w.Write(header)
	w.WriteByte('\n')
	var pair [16]byte
	for _, s := range ix.spans {
		binary.LittleEndian.PutUint64(pair[:8], uint64(s.Offset))
		binary.LittleEndian.PutUint64(pair[8:], uint64(s.Length))
		w.Write(pair[:])
	}
	// CreateTemp makes a file for its owner alone; an index is for all.
	err = errors.Join(w.Flush(), file.Chmod(0o644), file.Close())
	if err == nil {
		err = os.Rename(tmp, path+".index")
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

// onlyCostsTime tells whether an index that failed to be written for err may be
// done without: the folder is read-only or the disk is full.
func onlyCostsTime(err error) bool {
	for _, known := range []error{os.ErrPermission, syscall.EROFS, syscall.ENOSPC, syscall.EDQUOT} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// readSpan reads the bytes of one record.
func readSpan(r io.ReaderAt, s span) ([]byte, error) {
	data := make([]byte, s.Length)
	if n, err := r.ReadAt(data, s.Offset); n < len(data) {
		return nil, fmt.Errorf("read %d bytes at %d: %w", s.Length, s.Offset, err)
	}
	return data, nil
}

// closing joins the error of closing file to err.
func closing(file *os.File, err error) error { return errors.Join(err, file.Close()) }
