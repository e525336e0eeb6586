package qwenvl

import (
	"container/list"
	"crypto/sha256"
)

// cache keeps the most recently used values within a number of bytes. It is
// used by the engine's goroutine alone.
type cache[V any] struct {
	budget, used int
	entries      map[[sha256.Size]byte]*list.Element
	order        *list.List // newest first
}

type cacheEntry[V any] struct {
	key   [sha256.Size]byte
	value V
	bytes int
}

func newCache[V any](budget int) *cache[V] {
	return &cache[V]{budget: budget, entries: map[[sha256.Size]byte]*list.Element{}, order: list.New()}
}

func (c *cache[V]) get(key [sha256.Size]byte) (value V, ok bool) {
	element, ok := c.entries[key]
	if !ok {
		return value, false
	}
	c.order.MoveToFront(element)
	return element.Value.(*cacheEntry[V]).value, true
}

// put stores a value of the given size and drops the least recently used ones
// that no longer fit. A value larger than the budget is not kept.
func (c *cache[V]) put(key [sha256.Size]byte, value V, bytes int) {
	if _, ok := c.entries[key]; ok || bytes > c.budget {
		return
	}
	c.entries[key] = c.order.PushFront(&cacheEntry[V]{key, value, bytes})
	c.used += bytes
	for c.used > c.budget {
		oldest := c.order.Back()
		entry := c.order.Remove(oldest).(*cacheEntry[V])
		delete(c.entries, entry.key)
		c.used -= entry.bytes
	}
}

func (c *cache[V]) clear() {
	clear(c.entries)
	c.order.Init()
	c.used = 0
}
