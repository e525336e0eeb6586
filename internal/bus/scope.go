package bus

import (
	"fmt"
	"strconv"
	"strings"
)

// prefix is the first token of every subject.
const prefix = "uadt"

// Kind is the third token of a subject after prefix and run: what a message is
// for. Each kind belongs to one stream.
type Kind string

// The kinds and, in brackets, the tokens of their keys.
const (
	Jobs   Kind = "job"   // [job]
	Traces Kind = "trace" // [job]
	Train  Kind = "train" // [rank, n, command]
	Scores Kind = "score" // [rank, n]
	Events Kind = "event" // free
)

// Scope is whose messages are meant: those of one run, and of one incarnation
// of its coordinator, or of any when Incarnation is 0 (for reading only).
type Scope struct {
	Run         string
	Incarnation uint64
}

// CheckName says whether name can be one token of a subject: 1 to 128 of
// [A-Za-z0-9_-].
func CheckName(name string) error {
	if name == "" || len(name) > 128 {
		return fmt.Errorf("%w: %q has %d characters, want 1 to 128", ErrName, name, len(name))
	}
	for _, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && c != '_' && c != '-' {
			return fmt.Errorf("%w: %q holds %q, want only A-Z, a-z, 0-9, _ and -", ErrName, name, c)
		}
	}
	return nil
}

// subject renders the subject of key. With Incarnation 0 its token is a
// wildcard; so may tokens of key be when the subject is for reading.
func (s Scope) subject(kind Kind, key string) string {
	e := "*"
	if s.Incarnation > 0 {
		e = strconv.FormatUint(s.Incarnation, 10)
	}
	return strings.Join([]string{prefix, s.Run, e, string(kind), key}, ".")
}

// partToken begins the last token of the subject of a part.
const partToken = "part-"

// checkKey says whether every token of key is a name, and none but the first
// looks like that of a part.
func checkKey(key string) error {
	for i, token := range strings.Split(key, ".") {
		if err := CheckName(token); err != nil {
			return fmt.Errorf("key %q: %w", key, err)
		}
		if i > 0 && strings.HasPrefix(token, partToken) {
			return fmt.Errorf("%w: key %q: %q is reserved", ErrName, key, partToken)
		}
	}
	return nil
}

// parseSubject is the inverse of subject.
func parseSubject(subject string) (scope Scope, kind Kind, key string, err error) {
	tokens := strings.SplitN(subject, ".", 5)
	if len(tokens) != 5 || tokens[0] != prefix {
		return Scope{}, "", "", fmt.Errorf("%w: subject %q", ErrName, subject)
	}
	e, err := strconv.ParseUint(tokens[2], 10, 64)
	if err != nil || e == 0 {
		return Scope{}, "", "", fmt.Errorf("%w: incarnation %q in subject %q", ErrName, tokens[2], subject)
	}
	return Scope{Run: tokens[1], Incarnation: e}, Kind(tokens[3]), tokens[4], nil
}
