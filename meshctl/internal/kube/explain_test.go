package kube

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"syscall"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestFailuresThatCallForDifferentThingsAreToldApart(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	for name, c := range map[string]struct {
		err  error
		want Failure
	}{
		"a right that is missing":   {apierrors.NewForbidden(pods, "p", errors.New("no")), Forbidden},
		"a login that has ended":    {apierrors.NewUnauthorized("no"), Forbidden},
		"an object that is missing": {apierrors.NewNotFound(pods, "p"), NotFound},
		"nothing installed":         {fmt.Errorf("pilot is %w", ErrNotInstalled), NotFound},
		"nothing ready":             {fmt.Errorf("pilot is %w", ErrNotRunning), NotRunning},
		"a refused connection":      {&url.Error{Op: "Get", URL: "https://x", Err: errors.New("connection refused")}, Unreachable},
		"no answer in time":         {context.DeadlineExceeded, Unreachable},
		"a busy API server":         {apierrors.NewServerTimeout(pods, "get", 1), Unreachable},
		"an end by the user":        {context.Canceled, Other},
		"a bad setting":             {errors.New("no"), Other},
		"a file that is not there":  {&fs.PathError{Op: "open", Path: "x", Err: syscall.ENOENT}, Other},
		"none":                      {nil, Other},
	} {
		if c.err != nil {
			c.err = fmt.Errorf("attempting: %w", c.err)
		}
		if got := FailureOf(c.err); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
