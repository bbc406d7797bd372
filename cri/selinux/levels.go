package selinux

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
)

// levels are the levels that labels have, with the number of labels that have
// each. The library's own list knows no numbers, and looks for ever for a free
// level where there is none.
type levels struct {
	sensitivity string // s0; empty: the policy has no levels
	categories  int

	mu   sync.Mutex
	used map[string]int
}

func newLevels(sensitivity string, categories int) *levels {
	return &levels{sensitivity: sensitivity, categories: categories, used: map[string]int{}}
}

// sensitivity is that of a level or of a range's lower end.
func sensitivity(level string) string {
	level, _, _ = strings.Cut(level, ":")
	level, _, _ = strings.Cut(level, "-")
	return level
}

// guesses are so many that of a half-full list one fails in 2^64 times.
const guesses = 64

// fresh reserves a level with a pair of categories that no other has.
func (l *levels) fresh() (string, error) {
	if l.sensitivity == "" {
		return "", nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for range guesses {
		a, b := rand.IntN(l.categories), rand.IntN(l.categories)
		if level := l.pair(min(a, b), max(a, b)); a != b && l.used[level] == 0 {
			l.used[level]++
			return level, nil
		}
	}
	for a := range l.categories {
		for b := a + 1; b < l.categories; b++ {
			if level := l.pair(a, b); l.used[level] == 0 {
				l.used[level]++
				return level, nil
			}
		}
	}
	return "", fmt.Errorf("all pairs of %d SELinux categories are taken: raise selinux.categoryRange", l.categories)
}

func (l *levels) pair(a, b int) string { return fmt.Sprintf("%s:c%d,c%d", l.sensitivity, a, b) }

func (l *levels) retain(level string) {
	if level == "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used[level]++
}

func (l *levels) release(level string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.used[level]--; l.used[level] <= 0 {
		delete(l.used, level)
	}
}
