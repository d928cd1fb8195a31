package kube

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
)

// Errors of what is asked of the control plane. Those of the API server have types of their own.
var (
	ErrNotInstalled = errors.New("not installed") // there is nothing of it in the cluster
	ErrNotRunning   = errors.New("not running")   // it is there, and no pod of it is ready
)

// Failure is one of the kinds of failures that call for different things to be done.
type Failure string

// The kinds. They are the first words of what a command says when it fails.
const (
	Other       Failure = ""
	Forbidden   Failure = "forbidden"   // the user lacks a right, or is nobody to the API server
	NotFound    Failure = "not found"   // the API server says that there is no such thing, or it is not installed
	NotRunning  Failure = "not running" // it is installed, and has no pod that is ready
	Unreachable Failure = "unreachable" // there was no answer
)

// FailureOf says of which kind an error is.
func FailureOf(err error) Failure {
	var connection *url.Error
	var network net.Error
	var file *fs.PathError
	var answer interface {
		error
		StatusCode() int
	}
	if errors.As(err, &answer) {
		switch answer.StatusCode() {
		case http.StatusUnauthorized, http.StatusForbidden:
			return Forbidden
		case http.StatusNotFound:
			return NotFound
		}
	}
	switch {
	case err == nil || errors.Is(err, context.Canceled) || errors.As(err, &file): // the system's errors about files look like those of a network
		return Other
	case errors.Is(err, ErrNotRunning):
		return NotRunning
	case apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err):
		return Forbidden
	case errors.Is(err, ErrNotInstalled) || apierrors.IsNotFound(err) || meta.IsNoMatchError(err):
		return NotFound
	case errors.As(err, &connection), errors.As(err, &network), errors.Is(err, context.DeadlineExceeded),
		apierrors.IsTimeout(err), apierrors.IsServerTimeout(err), apierrors.IsServiceUnavailable(err):
		return Unreachable
	default:
		return Other
	}
}
