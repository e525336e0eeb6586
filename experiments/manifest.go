package experiments

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	manifestName    = "manifest.json"
	manifestVersion = 1
	// hashLimit is the largest file whose content the manifest vouches for. For
	// larger ones it vouches for the size: reading gigabytes of weights again
	// would make a checkpoint slower than writing it, and weights have a digest
	// of their own in the state.
	hashLimit = 16 << 20
)

// manifest says what a checkpoint consists of. It is the last file written.
type manifest struct {
	Version int            `json:"version"`
	Step    int            `json:"step"`
	Pinned  bool           `json:"pinned"`
	Files   []manifestFile `json:"files"` // sorted by path, without the manifest
}

type manifestFile struct {
	Path   string `json:"path"` // relative, with slashes
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256,omitempty"` // of files up to 16 MiB
}

// writeManifest lists the files of dir and writes the manifest.
func (r *Run) writeManifest(dir string, step int, pin bool) error {
	m := manifest{Version: manifestVersion, Step: step, Pinned: pin}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			return nil
		}
		if !e.Type().IsRegular() {
			return fmt.Errorf("%s is not a plain file", path)
		}
		relative, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, err := describe(path)
		f.Path = filepath.ToSlash(relative)
		m.Files = append(m.Files, f)
		return err
	})
	if err != nil {
		return err
	}
	return r.disk.write(filepath.Join(dir, manifestName), func(w io.Writer) error {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", " ")
		return encoder.Encode(m)
	})
}

// describe measures one file, and hashes it if it is small.
func describe(path string) (out manifestFile, err error) {
	f, err := os.Open(path)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return out, err
	}
	out.Size = info.Size()
	if out.Size > hashLimit {
		return out, nil
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return out, err
	}
	out.SHA256 = hex.EncodeToString(hash.Sum(nil))
	return out, nil
}

// readManifest reads the manifest of dir.
func readManifest(dir string) (manifest, error) {
	path := filepath.Join(dir, manifestName)
	data, err := os.ReadFile(path)
	if err != nil {
		return manifest{}, fmt.Errorf("checkpoint without a manifest: %w", err)
	}
	m, err := parseManifest(data)
	if err != nil {
		return manifest{}, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// parseManifest checks that every path stays below the checkpoint.
func parseManifest(data []byte) (manifest, error) {
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return manifest{}, err
	}
	if m.Version != manifestVersion {
		return manifest{}, fmt.Errorf("version %d, want %d", m.Version, manifestVersion)
	}
	for _, f := range m.Files {
		if !filepath.IsLocal(filepath.FromSlash(f.Path)) || f.Size < 0 {
			return manifest{}, fmt.Errorf("file %q of %d bytes", f.Path, f.Size)
		}
	}
	return m, nil
}

// verify compares dir with the manifest and reports every file that differs.
func (m manifest) verify(dir string, step int) error {
	var problems []error
	if m.Step != step {
		problems = append(problems, fmt.Errorf("manifest is of step %d", m.Step))
	}
	stateSeen := false
	for _, want := range m.Files {
		stateSeen = stateSeen || want.Path == "state.json"
		got, err := describe(filepath.Join(dir, filepath.FromSlash(want.Path)))
		switch {
		case err != nil:
			problems = append(problems, err)
		case got.Size != want.Size:
			problems = append(problems, fmt.Errorf("%s has %d bytes, manifest says %d", want.Path, got.Size, want.Size))
		case got.SHA256 != want.SHA256:
			problems = append(problems, fmt.Errorf("%s has SHA-256 %s, manifest says %s", want.Path, got.SHA256, want.SHA256))
		}
	}
	if !stateSeen {
		problems = append(problems, errors.New("state.json is not in the manifest"))
	}
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("checkpoint %s: %w", dir, err)
	}
	return nil
}
