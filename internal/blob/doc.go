// Package blob stores encoded images, and whatever else is large and never
// changes, once, under the SHA-256 of their bytes: a [Store] on disk, a
// [Server] that hands blobs out over HTTP to whoever knows its token, and a
// [Client] that fetches, checks and keeps them. Coordinator and dataset write;
// workers and trainers read.
//
// A blob of digest d lies in <dir>/<first two digits of d>/<d>; a file that is
// being written lies in <dir>/tmp. The server answers GET and HEAD
// /blob/<d> with the header Authorization: Bearer <token>: 200 and the bytes,
// 400 for what is no digest, 401 for a wrong token, 404 for an unknown blob.
//
// It decodes nothing, deletes nothing and never lists what it holds. Every
// byte that is read, from disk or network, is checked against its digest.
package blob

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// What callers may want to tell apart.
var (
	// ErrNotFound: no blob of that digest.
	ErrNotFound = errors.New("no such blob")
	// ErrCorrupt: the bytes are not those of the digest.
	ErrCorrupt = errors.New("blob does not match its digest")
	// ErrDigest: not 64 lower-case hexadecimal digits.
	ErrDigest = errors.New("not a SHA-256 digest")
	// ErrTooLarge: the blob is over the reader's limit.
	ErrTooLarge = errors.New("blob is too large")
	// ErrDenied: the server refused the token.
	ErrDenied = errors.New("blob server refused the token")
)

// DigestOf returns the SHA-256 of data in lower-case hex.
func DigestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// CheckDigest says whether digest has the form of one; only then may it become
// part of a path.
func CheckDigest(digest string) error {
	if len(digest) != 2*sha256.Size {
		return fmt.Errorf("%w: %.80q has %d characters, want %d", ErrDigest, digest, len(digest), 2*sha256.Size)
	}
	for _, c := range []byte(digest) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return fmt.Errorf("%w: %q", ErrDigest, digest)
		}
	}
	return nil
}
