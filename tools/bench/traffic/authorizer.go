package traffic

import (
	"context"
	"strings"

	auth "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
)

// AuthorizerPort is where the server answers Envoy's questions, as an external authorizer.
const AuthorizerPort = 9191

// Refused ends the paths to which the authorizer says no.
const Refused = "/refused"

// decides is an authorizer that does as little as one can.
type decides struct {
	auth.UnimplementedAuthorizationServer
}

// Check implements Authorization.
func (decides) Check(_ context.Context, in *auth.CheckRequest) (*auth.CheckResponse, error) {
	if strings.HasSuffix(in.GetAttributes().GetRequest().GetHttp().GetPath(), Refused) {
		return &auth.CheckResponse{Status: &status.Status{Code: int32(codes.PermissionDenied)}}, nil
	}
	return &auth.CheckResponse{Status: &status.Status{Code: int32(codes.OK)}}, nil
}
