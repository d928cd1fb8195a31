-- What a proxy does with kubelet's requests at its health port. A route's context says what to ask of the application; the one who asks here, who
-- may be anybody, chooses nothing of it: the path, the Host and the headers that arrive are those that the pod's author has declared.

local HTTP, HTTPS, DESTINATION = "kubelet|http", "kubelet|https", "x-envoy-original-dst-host" -- as in probes.go
local REDIRECTS = {["301"] = true, ["302"] = true, ["303"] = true, ["307"] = true, ["308"] = true}
local MAX_REQUESTS = 10 -- kubelet's: the first and nine redirects

-- What kubelet's clients send by themselves, but for their name.
local OWN = {accept = "*/*", ["accept-encoding"] = "gzip", te = "trailers", ["content-type"] = "application/grpc", ["grpc-accept-encoding"] = "gzip"}

local function declared(probe)
  local values = {}
  for _, header in ipairs(probe.headers or {}) do
    values[header.name] = values[header.name] or {}
    table.insert(values[header.name], header.value)
  end
  return values
end

local function contains(list, value)
  for _, v in ipairs(list) do
    if v == value then return true end
  end
  return table.concat(list, ",") == value
end

-- admitted reports whether a header is one that kubelet sends.
local function admitted(values, name, value)
  if name:sub(1, 1) == ":" then return true end
  if values[name] then return contains(values[name], value) end
  if name == "user-agent" then return value:find("^kube%-%l+/[%w%.%+%-/ ]+$") ~= nil end
  if name == "grpc-timeout" then return value:find("^%d+%a$") ~= nil end
  return OWN[name] == value
end

local function join(address, port)
  if address:find(":", 1, true) then address = "[" .. address .. "]" end
  return address .. ":" .. port
end

-- once reports whether kubelet says that the connection is for one request: of hooks it may keep it, and in HTTP/2, which HTTPS may come to, nobody says that.
local function once(probe, scheme) return scheme == "http" and not probe.hook end

-- message is the gRPC message that asks for the health of a service, uncompressed.
local function message(service)
  local length, field = #service, ""
  if length > 0 then
    local varint, rest = "", length
    while rest >= 128 do
      varint, rest = varint .. string.char(rest % 128 + 128), math.floor(rest / 128)
    end
    field = "\10" .. varint .. string.char(rest) .. service
  end
  local n = #field
  return string.char(0, math.floor(n / 16777216) % 256, math.floor(n / 65536) % 256, math.floor(n / 256) % 256, n % 256) .. field
end

-- call finds which probe a gRPC request is: injection has put its name in the place of the service. The body becomes what the application is to be asked.
local function call(handle, calls)
  local body = handle:body()
  local asked = body and body:getBytes(0, body:length())
  for _, c in ipairs(calls) do
    if asked == message(c.name) then
      body:setBytes(message(c.service or ""))
      return c
    end
  end
end

function envoy_on_request(handle)
  local context = handle:filterContext()
  local probe, calls, address = context:get("probe"), context:get("calls"), context:get("address")
  if not probe and not calls then return end
  if calls then
    probe = call(handle, calls)
  elseif handle:body() then
    probe = nil
  end
  if not probe then
    handle:respond({[":status"] = "404"}, "")
    return
  end
  local headers, values, unknown, kept = handle:headers(), declared(probe), {}, {}
  for name, value in pairs(headers) do
    if not admitted(values, name, value) then
      unknown[name] = true
    elseif name:sub(1, 1) ~= ":" then
      kept[name] = kept[name] or {}
      table.insert(kept[name], value)
    end
  end
  for name in pairs(unknown) do
    headers:remove(name)
    kept[name] = nil
  end
  if probe.path then headers:replace(":path", probe.path) end
  headers:replace(":authority", probe.host or join(address, probe.port))
  if once(probe, probe.scheme) then headers:replace("connection", "close") end
  handle:streamInfo():dynamicMetadata():set("kubelet", "headers", kept)
  headers:replace(DESTINATION, join(address, probe.port)) -- the last: without it there is nowhere to go to
end

-- clean resolves the dot segments of a path.
local function clean(path)
  local out, last = {}, ""
  for segment in path:sub(2):gmatch("([^/]*)/?") do
    last = segment
    if segment == ".." then
      table.remove(out)
    elseif segment ~= "." then
      table.insert(out, segment)
    end
  end
  local trailing = path:sub(-1) == "/" or path:find("/%.%.?$") ~= nil
  while out[#out] == "" do table.remove(out) end
  return "/" .. table.concat(out, "/") .. ((trailing and #out > 0) and "/" or "")
end

-- resolve is what a Location means at a URL, or nil if kubelet shall see it as it is: what is no URL it refuses, and what is no URL of HTTP it does not follow.
local function resolve(at, location)
  local reference = location:gsub("#.*$", "")
  if reference:gsub("%%%x%x", ""):find("%", 1, true) then return nil end
  local scheme, rest = reference:match("^(%a[%w%+%-%.]*):(//.*)$")
  local url = {scheme = at.scheme, host = at.host, port = at.port, authority = at.authority, relative = scheme == nil}
  if scheme then
    url.scheme = scheme:lower()
    if url.scheme ~= "http" and url.scheme ~= "https" then return nil end
    reference = rest
  elseif reference:match("^[^/%?]*:") then
    return nil
  end
  local authority, after = reference:match("^//([^/%?]*)(.*)$")
  if authority then
    authority = authority:gsub("^.*@", "")
    url.host, url.port = authority:match("^%[(.*)%]:?(%d*)$")
    if not url.host then url.host, url.port = authority:match("^([^:]*):?(%d*)$") end
    if not url.host then return nil end
    url.authority = authority
    url.port = url.port ~= "" and url.port or (url.scheme == "https" and "443" or "80")
    reference = after
  end
  local path, query = reference:match("^([^%?]*)(.*)$")
  local base, its_query = at.path:match("^([^%?]*)(.*)$")
  if authority then
    base = "/"
  elseif path == "" and query == "" then
    query = its_query
  end
  if path == "" then
    path = base
  elseif path:sub(1, 1) ~= "/" then
    path = base:gsub("[^/]*$", "") .. path
  end
  url.path = clean(path) .. query
  return url
end

local function text(url) return url.scheme .. "://" .. url.authority .. url.path end

-- fail has kubelet's client fail with a reason, as if it had failed to connect by itself: a Location that is no URL, since it has a colon in its first segment.
local function fail(handle, reason)
  handle:headers():replace(":status", "302")
  handle:headers():replace("location", reason)
end

-- unreachable says why there was no answer, in the words of kubelet's client if it was not there to be connected to.
local function unreachable(where, why)
  if not why:find("TLS", 1, true) and (why:find("refused", 1, true) or why:find("remote connection failure", 1, true)) then why = "connect: connection refused" end
  return "dial tcp " .. where .. ": " .. why
end

-- ask sends a request to the pod itself, as kubelet would after a redirect.
local function ask(handle, probe, url, authority, referer, sent)
  handle:body(true) -- the whole answer is here before it is left
  local headers = {[":method"] = "GET", [":path"] = url.path, [":authority"] = authority, [DESTINATION] = join(url.host, url.port)}
  for name, values in pairs(sent) do headers[name] = values end
  if once(probe, url.scheme) then headers["connection"] = "close" end
  if referer and not headers["referer"] then headers["referer"] = referer end
  local answer, body = handle:httpCall(url.scheme == "https" and HTTPS or HTTP, headers, nil, {timeout_ms = probe.timeout or 0, send_xff = false})
  local broken = (body or ""):match("^upstream connect error or disconnect/reset before headers%. (.*)$")
  if broken then fail(handle, unreachable(headers[DESTINATION], broken)) end
  return answer, body or "", broken
end

function envoy_on_response(handle)
  local context = handle:filterContext()
  local probe = context:get("probe")
  if not probe then return end
  local answer = handle:headers()
  local status, location = answer:get(":status"), answer:get("location")
  if status == "200" and not probe.path then -- TCP, which is connected: an answer without a body, after which kubelet ends it
    answer:replace(":status", "204")
  end
  if not location then return end
  local where, why = location:match("^dial tcp (%S+): (.*)$")
  if where then fail(handle, unreachable(where, why)) end
  if not probe.path then return end
  if not REDIRECTS[status] then return end
  local address, proxy = context:get("address"), context:get("proxy")
  local at = {scheme = probe.scheme, host = address, port = tostring(probe.port), authority = join(address, probe.port), path = probe.path}
  local authority, sent, body = probe.host or at.authority, handle:streamInfo():dynamicMetadata():get("kubelet").headers, nil
  local broken, fields = false, nil
  if probe.hook and probe.scheme == "https" and location:find("WRONG_VERSION_NUMBER", 1, true) then -- it speaks HTTP: of hooks, kubelet lets that pass
    at.scheme, sent.authorization = "http", nil
    fields, body, broken = ask(handle, probe, at, authority, nil, sent)
    if broken then return end
    status, location = fields[":status"], fields["location"]
  end
  for requests = 1, MAX_REQUESTS do
    local url = REDIRECTS[status] and location and resolve(at, location)
    if not url or url.host ~= address or proxy[url.port] then break end
    if requests == MAX_REQUESTS then return fail(handle, "redirects of the application: stopped after 10 redirects") end
    if not url.relative or authority == at.authority then authority = url.authority end
    local referer = not (at.scheme == "https" and url.scheme == "http") and text(at) or nil
    fields, body, broken = ask(handle, probe, url, authority, referer, sent)
    if broken then return end
    at, status, location = url, fields[":status"], fields["location"]
  end
  if not body then return end
  answer = handle:headers() -- what was got before a call is no more
  answer:replace(":status", status)
  answer:remove("location")
  answer:remove("content-encoding")
  if location then answer:replace("location", location) end
  handle:body(true):setBytes(body)
end
