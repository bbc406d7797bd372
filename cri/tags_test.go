//go:build !failpoints

package cri_test

// buildTags are those that the programs under test are built with.
const buildTags = ""
