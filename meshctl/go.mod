module github.com/bulwark-mesh/bulwark/meshctl

go 1.26
