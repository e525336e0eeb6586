package serve

import (
	"container/list"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strings"
	"sync"

	"github.com/uadt-train/uadt-train/internal/qwenvl"
	"github.com/uadt-train/uadt-train/internal/vision"
)

// imageStore keeps preprocessed images by the digest of their bytes and of the
// preprocessing, within a number of bytes, and remembers which digest a
// client's uuid stands for. A uuid that comes with bytes always means these
// bytes; alone it means the bytes it last came with.
type imageStore struct {
	mu      sync.Mutex
	budget  int
	used    int
	entries map[[sha256.Size]byte]*list.Element // of *storedImage
	order   *list.List                          // newest first
	uuids   map[uuidKey][sha256.Size]byte
	queries int64
	hits    int64
}

type storedImage struct {
	image qwenvl.Image
	uuids map[uuidKey]struct{} // what stands for it now
}

// bytes is what an image is charged with.
func (i *storedImage) bytes() int { return 4 * len(i.image.Patches) }

// uuidKey is a client's name of an image under one preprocessing.
type uuidKey struct {
	uuid                 string
	minPixels, maxPixels int
}

// bytes is what a name is charged with: its text and its place in two maps.
func (k uuidKey) bytes() int { return len(k.uuid) + 128 }

func newImageStore(budget int) *imageStore {
	return &imageStore{budget: budget, entries: map[[sha256.Size]byte]*list.Element{}, order: list.New(),
		uuids: map[uuidKey][sha256.Size]byte{}}
}

func (s *imageStore) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.entries)
	clear(s.uuids)
	s.order.Init()
	s.used = 0
}

// byUUID finds an image that was sent before.
func (s *imageStore) byUUID(key uuidKey) (qwenvl.Image, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queries++
	digest, ok := s.uuids[key]
	if !ok {
		return qwenvl.Image{}, false
	}
	s.hits++
	return s.touch(digest)
}

func (s *imageStore) byDigest(digest [sha256.Size]byte) (qwenvl.Image, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queries++
	image, ok := s.touch(digest)
	if ok {
		s.hits++
	}
	return image, ok
}

func (s *imageStore) touch(digest [sha256.Size]byte) (qwenvl.Image, bool) {
	element, ok := s.entries[digest]
	if !ok {
		return qwenvl.Image{}, false
	}
	s.order.MoveToFront(element)
	return element.Value.(*storedImage).image, true
}

// put stores an image and, if the key has a uuid, what that stands for. An
// image that is too large to keep takes its name's old meaning with it.
func (s *imageStore) put(image qwenvl.Image, key uuidKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if key.uuid != "" {
		s.forget(key)
	}
	element, ok := s.entries[image.Digest]
	if !ok {
		stored := &storedImage{image: image, uuids: map[uuidKey]struct{}{}}
		if stored.bytes() > s.budget {
			return
		}
		element = s.order.PushFront(stored)
		s.entries[image.Digest] = element
		s.used += stored.bytes()
	}
	if key.uuid != "" {
		s.uuids[key] = image.Digest
		element.Value.(*storedImage).uuids[key] = struct{}{}
		s.used += key.bytes()
	}
	for s.used > s.budget {
		s.dropOldest()
	}
}

// forget takes a name back.
func (s *imageStore) forget(key uuidKey) {
	digest, ok := s.uuids[key]
	if !ok {
		return
	}
	delete(s.uuids, key)
	delete(s.entries[digest].Value.(*storedImage).uuids, key)
	s.used -= key.bytes()
}

// dropOldest drops the image that was not asked for the longest, with its names.
func (s *imageStore) dropOldest() {
	old := s.order.Back().Value.(*storedImage)
	for key := range old.uuids {
		s.forget(key)
	}
	s.order.Remove(s.order.Back())
	delete(s.entries, old.image.Digest)
	s.used -= old.bytes()
}

func (s *imageStore) counts() (queries, hits int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queries, s.hits
}

// image turns one image part into patches. index is its place in the prompt.
func (s *Server) image(part *chatPart, index int, config vision.Config) (qwenvl.Image, error) {
	key := uuidKey{or(part.UUID, ""), config.MinPixels, config.MaxPixels}
	if part.ImageURL == nil || part.ImageURL.URL == "" {
		if key.uuid != "" {
			if image, ok := s.images.byUUID(key); ok {
				return image, nil
			}
		}
		return qwenvl.Image{}, badRequest("", "Cache miss for image at index %d but data is not provided.", index)
	}
	data, err := decodeURL(part.ImageURL.URL)
	if err != nil {
		return qwenvl.Image{}, err
	}
	digest := imageDigest(data, config)
	image, ok := s.images.byDigest(digest)
	if !ok {
		patches, err := vision.Preprocess(data, config)
		if err != nil {
			return qwenvl.Image{}, badRequest("", "Failed to load image: %v", err)
		}
		g := patches.Grid
		image = qwenvl.Image{Digest: digest, Grid: qwenvl.Grid{T: g[0], H: g[1], W: g[2]}, Patches: patches.Pixels}
	}
	s.images.put(image, key)
	return image, nil
}

// imageDigest covers the bytes and what preprocessing may vary.
func imageDigest(data []byte, c vision.Config) [sha256.Size]byte {
	h := sha256.New()
	limits := binary.LittleEndian.AppendUint64(nil, uint64(c.MinPixels))
	h.Write(binary.LittleEndian.AppendUint64(limits, uint64(c.MaxPixels)))
	h.Write(data)
	return [sha256.Size]byte(h.Sum(nil))
}

// decodeURL returns the bytes of a data URL. Other URLs get the answers that a
// vLLM server without a media path and without a network gives.
func decodeURL(url string) ([]byte, error) {
	scheme, rest, _ := strings.Cut(url, ":")
	switch strings.ToLower(scheme) {
	case "data":
	case "http", "https":
		return nil, internalError("Cannot connect to host: this server fetches no images, send a data URL.")
	case "file":
		return nil, internalError("Cannot load local files without `--allowed-local-media-path`.")
	default:
		return nil, badRequest("", "The URL must be either a HTTP, data or file URL.")
	}
	header, body, ok := strings.Cut(rest, ",")
	if !ok || !strings.HasSuffix(header, ";base64") {
		return nil, badRequest("", "Only base64 data URLs are supported for now.")
	}
	data, err := base64.StdEncoding.DecodeString(body)
	if err != nil {
		if data, err = base64.RawStdEncoding.DecodeString(body); err != nil {
			return nil, badRequest("", "Non-base64 digit found")
		}
	}
	return data, nil
}
