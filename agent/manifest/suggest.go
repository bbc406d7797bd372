package manifest

import "strings"

// closest returns the known field that a misspelt one most likely stands for, or "".
func closest(name string, known map[string][]int) string {
	best, bestDistance := "", max(2, len(name)/4)+1
	for k := range known {
		distance := editDistance(strings.ToLower(name), strings.ToLower(k))
		if distance < bestDistance || distance == bestDistance && best != "" && k < best {
			best, bestDistance = k, distance
		}
	}
	if bestDistance >= len(name) { // nothing in common
		return ""
	}
	return best
}

// editDistance is the Levenshtein distance of two strings; long ones are never alike.
func editDistance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return len(a) + len(b)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}
