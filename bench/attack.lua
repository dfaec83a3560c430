-- Sends in turn each of the forms that BENCH_FORMS holds, one a line, with the cookie of BENCH_COOKIE.
local requests, number = {}, 0
local headers = {
  ["Content-Type"] = "application/x-www-form-urlencoded",
  ["Cookie"] = os.getenv("BENCH_COOKIE"),
}

function init()
  for body in io.lines(os.getenv("BENCH_FORMS")) do
    requests[#requests + 1] = wrk.format("POST", "/login", headers, body)
  end
end

function request()
  number = number % #requests + 1
  return requests[number]
end
