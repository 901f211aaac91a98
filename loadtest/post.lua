-- wrk script: posts the given files in turn, then prints one line of figures. Arguments: CONTENT_TYPE ACCEPT
-- AUTHORIZATION FILE...; an empty header is not sent.
local requests, turn = {}, 0

function init(args)
  local headers = {["Content-Type"] = args[1]}
  if args[2] ~= "" then
    headers["Accept"] = args[2]
  end
  if args[3] ~= "" then
    headers["Authorization"] = args[3]
  end
  for i = 4, #args do
    local file = assert(io.open(args[i], "rb"))
    requests[#requests + 1] = wrk.format("POST", nil, headers, file:read("*a"))
    file:close()
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format(
    "RESULT requests=%d us=%d p50=%d p90=%d p99=%d p999=%d max=%d errors=%d\n",
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(90), latency:percentile(99),
    latency:percentile(99.9), latency.max, e.status + e.connect + e.read + e.write + e.timeout
  ))
end
