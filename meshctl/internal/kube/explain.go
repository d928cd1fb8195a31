package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Kinds of failures that call for different things to be done. They are told apart by errors.Is.
var (
	ErrForbidden   = errors.New("forbidden")   // the user lacks a right
	ErrNotFound    = errors.New("not found")   // the API server says that there is no such thing
	ErrUnreachable = errors.New("unreachable") // there was no answer
)

// Explain says what an error of the API server means for what was attempted: the user lacks a right, it is not there, or the
// API server cannot be reached. Other errors, and those explained before, are only wrapped; nil stays nil.
func Explain(attempted string, err error) error {
	var connection *url.Error
	var network net.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrForbidden) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnreachable):
		return fmt.Errorf("%s: %w", attempted, err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%s: %w, you lack the right: %w", attempted, ErrForbidden, err)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s: %w, the API server does not take your credentials: %w", attempted, ErrForbidden, err)
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%s: %w: %w", attempted, ErrNotFound, err)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", attempted, err)
	case errors.As(err, &connection) || errors.As(err, &network) || errors.Is(err, context.DeadlineExceeded) || apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err) || apierrors.IsServiceUnavailable(err):
		return fmt.Errorf("%s: %w, the API server does not answer: %w", attempted, ErrUnreachable, err)
	default:
		return fmt.Errorf("%s: %w", attempted, err)
	}
}
