package experiments

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/uadt-train/uadt-train/internal/durable"
)

// recordVersion changes when the meaning of a field of record does.
const recordVersion = 1

// ErrComplete is wrapped by the error of opening a run that is done and whose
// horizon was not moved.
var ErrComplete = errors.New("run is complete")

// ErrNotRun is wrapped by the error of opening a directory that holds something
// else.
var ErrNotRun = errors.New("not a run directory")

// Spec says which run directory to open and what for.
type Spec struct {
	Dir      string    // runs/<name>; created when it does not exist
	Config   []byte    // resolved configuration, written to config.yaml
	Settings []Setting // every key by class, and the digests that the run stands on
	Program  string    // version of the program, recorded with each start
	// Fresh starts anew beside an existing run: the first free of <Dir>-2, -3, ...
	Fresh bool
	// Keep is the number of checkpoints kept beside pinned ones, default 2.
	Keep   int
	Logger *slog.Logger     // warnings about what could not be cleaned up; default drops them
	Now    func() time.Time // clock of the recorded starts; default time.Now
}

// Run is an open run directory. Its methods may be called from several
// goroutines.
type Run struct {
	dir     string // absolute
	spec    Spec
	disk    disk
	lock    *os.File
	record  record
	resumed bool

	metrics     metricsFile
	checkpoints sync.Mutex // sealing and pruning go one at a time
}

// record is run.json.
type record struct {
	Version  int       `json:"version"`
	Complete bool      `json:"complete"`
	Settings []Setting `json:"settings"` // of the latest start
	Starts   []start   `json:"starts"`
}

// start is one start of the run, and what it changed.
type start struct {
	Time    time.Time    `json:"time"`
	Program string       `json:"program"`
	Changed []Difference `json:"changed,omitempty"`
}

// Open creates the run directory of spec or opens the existing one, and locks
// it. It fails with a *LockedError when another coordinator has it, with a
// *MismatchError naming every differing key when its identity is another, and
// with an error that wraps ErrComplete or ErrNotRun; the directory is then as it
// was. Differences of placement and horizon are recorded. What a crash left
// half-written is removed. Close gives the lock back.
func Open(spec Spec) (*Run, error) { return open(spec, disk{}) }

func open(spec Spec, d disk) (*Run, error) {
	if err := checkSettings(spec.Settings); err != nil {
		return nil, fmt.Errorf("open run directory: %w", err)
	}
	if spec.Keep < 0 {
		return nil, fmt.Errorf("open run directory: keep %d checkpoints, want at least 1 (0 is the default)", spec.Keep)
	}
	if spec.Keep == 0 {
		spec.Keep = 2
	}
	if spec.Logger == nil {
		spec.Logger = slog.New(slog.DiscardHandler)
	}
	if spec.Now == nil {
		spec.Now = time.Now
	}
	dir, err := filepath.Abs(spec.Dir)
	if err != nil {
		return nil, fmt.Errorf("open run directory: %w", err)
	}
	if spec.Fresh {
		if dir, err = free(dir); err != nil {
			return nil, err
		}
	}
	r := &Run{dir: dir, spec: spec, disk: d}
	if err := r.start(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// free returns the first of dir, dir-2, dir-3, ... that does not exist.
func free(dir string) (string, error) {
	candidate := dir
	for n := 2; ; n++ {
		_, err := os.Lstat(candidate)
		if errors.Is(err, fs.ErrNotExist) {
			return candidate, nil
		}
		if err != nil {
			return "", fmt.Errorf("open run directory: %w", err)
		}
		candidate = fmt.Sprintf("%s-%d", dir, n)
	}
}

// start locks the directory, checks it and makes it ready.
func (r *Run) start() error {
	before, err := readRecord(r.dir)
	if err != nil {
		return err
	}
	if before == nil {
		if err := r.mayCreate(); err != nil {
			return err
		}
		if err := os.MkdirAll(r.dir, 0o755); err != nil {
			return fmt.Errorf("create run directory: %w", err)
		}
		if err := durable.SyncDir(filepath.Dir(r.dir)); err != nil { // or a crash may lose the whole run
			return fmt.Errorf("create run directory: %w", err)
		}
	}
	if r.lock, err = lock(r.dir); err != nil {
		return err
	}
	// Again, under the lock: another start may have come in between.
	if before, err = readRecord(r.dir); err != nil {
		return err
	}
	next := record{Version: recordVersion, Settings: r.spec.Settings}
	begin := start{Time: r.spec.Now().UTC(), Program: r.spec.Program}
	if before != nil {
		r.resumed = true
		begin.Changed = Compare(before.Settings, r.spec.Settings)
		if other := ofClass(begin.Changed, ClassIdentity); len(other) > 0 {
			return &MismatchError{Dir: r.dir, Differences: other}
		}
		if before.Complete && len(ofClass(begin.Changed, ClassHorizon)) == 0 {
			return fmt.Errorf("run directory %s: %w", r.dir, ErrComplete)
		}
		next.Starts = before.Starts
	}
	next.Starts = append(next.Starts, begin)
	return r.prepare(next)
}

// mayCreate refuses a directory that exists and holds anything but what an
// earlier start left that did not get as far as its record.
func (r *Run) mayCreate() error {
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("create run directory: %w", err)
	}
	ours := map[string]bool{"lock": true, "config.yaml": true, "ledger": true, "rollouts": true, "checkpoints": true}
	for _, e := range entries {
		if !ours[e.Name()] && !isTemp(e.Name()) {
			return fmt.Errorf("%s holds %s and no run.json: %w", r.dir, e.Name(), ErrNotRun)
		}
	}
	return nil
}

// prepare makes the folders, cleans up and writes configuration and record, the
// record last.
func (r *Run) prepare(next record) error {
	folders := []string{".", "ledger", "rollouts", "checkpoints"}
	for _, folder := range folders {
		if err := os.MkdirAll(filepath.Join(r.dir, folder), 0o755); err != nil {
			return fmt.Errorf("create run directory: %w", err)
		}
	}
	if err := r.finishSeals(); err != nil {
		return err
	}
	for _, folder := range folders {
		if err := sweep(filepath.Join(r.dir, folder)); err != nil {
			return err
		}
	}
	if err := r.metrics.load(filepath.Join(r.dir, "metrics.jsonl"), r.disk); err != nil {
		return err
	}
	if err := r.disk.bytes(filepath.Join(r.dir, "config.yaml"), r.spec.Config); err != nil {
		return err
	}
	r.record = next
	return r.writeRecord()
}

func (r *Run) writeRecord() error {
	return r.disk.write(filepath.Join(r.dir, "run.json"), func(w io.Writer) error {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(r.record)
	})
}

// readRecord returns the record of dir, nil when there is none.
func readRecord(dir string) (*record, error) {
	path := filepath.Join(dir, "run.json")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open run directory: %w", err)
	}
	var found record
	if err := json.Unmarshal(data, &found); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, ErrNotRun, err)
	}
	if found.Version != recordVersion {
		return nil, fmt.Errorf("%s: version %d, want %d", path, found.Version, recordVersion)
	}
	return &found, nil
}

// Dir returns the run directory, absolute.
func (r *Run) Dir() string { return r.dir }

// Resumed says that the directory was there before.
func (r *Run) Resumed() bool { return r.resumed }

// Changed lists the placement and horizon settings that this start changed.
func (r *Run) Changed() []Difference { return r.record.Starts[len(r.record.Starts)-1].Changed }

// Finish records that the run is done: it will not be resumed unless its
// horizon moves.
func (r *Run) Finish() error {
	r.record.Complete = true
	return r.writeRecord()
}

// Close gives the lock back. The run stays resumable.
func (r *Run) Close() error {
	err := r.metrics.close()
	if r.lock != nil {
		err = errors.Join(err, r.lock.Close())
		r.lock = nil
	}
	return err
}
